"""What reaches the attention layers of a model: tokens, the other arguments of the call, and the grid of the tokens."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vars_ode.grids import MAX_PREFIX_TOKENS, Grid, infer_grid
from vars_ode.measuring import evaluation_mode


@dataclass(frozen=True)
class Call:
    """One call of a layer.

    Attributes:
        args, kwargs: its arguments; the first are tokens, (batch, tokens, dim).
        output: (batch, tokens, dim_out).
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Tensor


def recorded_calls(model: nn.Module, layers: Mapping[str, nn.Module], images: Tensor) -> tuple[dict[str, Call], Any]:
    """(the first call of each layer, the output of the model) in evaluation mode, without gradients.

    Raises:
        ValueError: the model cannot be run on these images.
    """
    names = {layer: name for name, layer in layers.items()}
    found: dict[str, Call] = {}

    def keep(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        found.setdefault(names[layer], Call(args, kwargs, output))

    handles = [layer.register_forward_hook(keep, with_kwargs=True) for layer in names]
    try:
        with evaluation_mode(model), torch.no_grad():
            output = model(images)
    except Exception as error:  # of whatever kind
        raise ValueError(
            f"the model could not be run on images {tuple(images.shape)} ({type(error).__name__}: {error}), which "
            "tells what its layers get; give it a few of its own as images="
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return found, output


def noise_images(model: Any, count: int) -> Tensor:
    """Gaussian noise of the model's input size, (count, channels, height, width), from a generator of its own."""
    known = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))
    patch = getattr(model, "patch_embed", None)
    channels = getattr(getattr(patch, "proj", None), "in_channels", None) or getattr(model, "in_chans", known[0])
    size = getattr(patch, "img_size", None) or known[1:]
    parameter = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, channels, *size, generator=generator, device="cpu").to(parameter)


def grid_of(model: Any, layer: nn.Module, tokens: int) -> tuple[Grid, int]:
    """(grid, number of prefix tokens) of the tokens that reach a layer.

    Raises:
        ValueError: they are no square grid, and not the model's own either.
    """
    prefix = getattr(layer, "num_prefix_tokens", getattr(model, "num_prefix_tokens", None))
    prefixes = range(MAX_PREFIX_TOKENS + 1) if prefix is None else (prefix, 0)
    own = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    for candidate in prefixes:
        if own is not None and math.prod(own) + candidate == tokens:
            return (own[0], own[1]), candidate
        side = math.isqrt(max(tokens - candidate, 0))
        if prefix is not None and side and side**2 + candidate == tokens:
            return (side, side), candidate
    return infer_grid(tokens)
