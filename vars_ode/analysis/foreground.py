"""Which tokens show the object: a rule without learned parameters, for pictures whose border is background."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vars_ode.grids import Grid, check_tokens


def boundary_foreground(features: Tensor, grid: Grid) -> Tensor:
    """Tokens that differ from the picture's border, (batch, tokens) boolean.

    The border of a picture is background more often than not (Wei, Wen, Zhu & Sun, Geodesic saliency using background
    priors, ECCV 2012). A token is foreground if its distance |x_i - mean of the border tokens|_2 lies above Otsu's
    threshold, which splits the distances of an image into the two classes with the largest variance between them
    (Otsu, A threshold selection method from gray-level histograms, 1979).

    Args:
        features: of each token, (batch, tokens, channels), tokens in row-major order.
        grid: (height, width) with height * width tokens.
    """
    check_tokens(grid, features.shape[1])
    height, width = grid
    border = torch.ones(height, width, dtype=torch.bool, device=features.device)
    border[1:-1, 1:-1] = False
    background = features[:, border.flatten()].double().mean(1, keepdim=True)
    distance = torch.linalg.vector_norm(features.double() - background, dim=-1)
    return distance > _otsu(distance)


def image_foreground(images: Tensor, grid: Grid) -> Tensor:
    """`boundary_foreground` with each patch described by its mean colour: images (batch, channels, height, width)."""
    colours = F.adaptive_avg_pool2d(images, grid).flatten(2).transpose(1, 2)
    return boundary_foreground(colours, grid)


def _otsu(values: Tensor) -> Tensor:
    """The threshold per row, (batch, 1): the lower class takes the values up to it."""
    ordered = values.sort(-1).values
    count = ordered.shape[-1]
    below = torch.arange(1, count + 1, dtype=ordered.dtype, device=ordered.device)
    total = ordered.sum(-1, keepdim=True)
    cumulative = ordered.cumsum(-1)
    above = (count - below).clamp_min(1)
    between = below * above * (cumulative / below - (total - cumulative) / above).square()
    between[..., -1] = -1.0  # an empty upper class
    return ordered.gather(-1, between.argmax(-1, keepdim=True))
