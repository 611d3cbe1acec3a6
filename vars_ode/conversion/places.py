"""Where the tokens of an attention layer are from: the grid of a model, and images of its size."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from vars_ode.grids import MAX_PREFIX_TOKENS, Grid, infer_grid


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
