"""What a converted model costs beside the original."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import timm
import torch
from torch import Tensor, nn

from vars_ode.conversion import convert_attention
from vars_ode.measuring import interleaved


@dataclass(frozen=True)
class ConvertRow:
    """The fastest forward pass of the original and of the converted model in milliseconds, and their ratio."""

    mode: str
    original_ms: float
    converted_ms: float
    ratio: float


def convert(
    name: str = "vit_tiny_patch16_224",
    batch: int = 2,
    repeats: int = 30,
    modes: tuple[str, ...] = ("eager", "compiled"),
) -> list[ConvertRow]:
    """A model of timm's with its own attention and with "vars-softmax" at the single step, without gradients."""
    torch.manual_seed(0)
    original = timm.create_model(name).eval()
    converted = copy.deepcopy(original)
    convert_attention(converted)
    images = torch.randn(batch, *original.pretrained_cfg["input_size"])
    prepare: dict[str, Callable[[nn.Module], Callable[[Tensor], Tensor]]] = {
        "eager": lambda model: model,
        "compiled": lambda model: torch.compile(model, fullgraph=True),
    }
    rows = []
    with torch.no_grad():
        for mode in modes:
            runs = [partial(prepare[mode](model), images) for model in (original, converted)]
            times = interleaved(runs, images.device, repeats, of=min)
            rows.append(ConvertRow(mode, times[0], times[1], times[1] / times[0]))
    return rows
