"""BatchNorm of evaluation mode folded into the linear map beside it, which then computes both: for deployment."""

from typing import Any

import torch
from torch import Tensor, nn

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


def fold_behind(linear: nn.Linear | nn.Conv2d, norm: nn.Module) -> nn.Module:
    """Change `linear` so that it computes norm(linear(x)). Returns what is left of the norm: nothing, an Identity.

    Args:
        linear: a linear map or convolution.
        norm: the BatchNorm of its output; anything else stays as it is.
    """
    if not isinstance(norm, BATCH_NORMS):
        return norm
    scale, shift = _scale_and_shift(norm)
    weight = linear.weight.double()
    _assign(linear, weight * scale.view(-1, *[1] * (weight.ndim - 1)), _bias(linear) * scale + shift)
    return nn.Identity()


def fold_before(norm: nn.Module, linear: nn.Linear | nn.Conv2d) -> nn.Module:
    """The same where linear(norm(x)) is computed; a convolution must be a 1x1, as padding would not be shifted."""
    if not isinstance(norm, BATCH_NORMS):
        return norm
    scale, shift = _scale_and_shift(norm)
    matrix = linear.weight.double().flatten(1)
    weight = (matrix * scale).view(linear.weight.shape)
    _assign(linear, weight, _bias(linear) + matrix @ shift)
    return nn.Identity()


def _scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """norm(x) = scale x + shift, in float64; a ValueError for one that has no statistics of its own."""
    if norm.running_var is None:
        raise ValueError(f"{norm} takes its statistics from every batch, so it is no fixed map that could be folded")
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.double()


def _bias(linear: Any) -> Tensor:
    rows = linear.weight.shape[0]
    return linear.weight.new_zeros(rows, dtype=torch.float64) if linear.bias is None else linear.bias.double()


def _assign(linear: Any, weight: Tensor, bias: Tensor) -> None:
    like = linear.weight
    linear.weight = nn.Parameter(weight.detach().to(like.dtype), like.requires_grad)
    linear.bias = nn.Parameter(bias.detach().to(like.dtype), like.requires_grad)
