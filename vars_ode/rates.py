"""Step bounds: rates eta <= 1 / |G|_2, under which ISTA descends.

A rate is computed from the Gram without gradient, as it is part of the method and not of the problem.
"""

from collections.abc import Callable

import torch
from torch import Tensor


@torch.no_grad()
def gershgorin_rate(gram: Tensor) -> Tensor:
    """1 / (1 + max_i sum_j |G_ij|), (..., 1, 1): the bound of the authors' code. Safe, and often twice too small."""
    return 1 / (gram.abs().sum(-1).amax(-1) + 1)[..., None, None]


@torch.no_grad()
def power_rate(gram: Tensor, iterations: int = 8) -> Tensor:
    """1 / L with L >= |G|_2 from power iteration, (..., 1, 1).

    Plain power iteration approaches |G|_2 from below, which would make the step too long. For v > 0 the largest
    (|G| v)_i / v_i bounds it from above (Collatz 1942) at every iteration, and for the positive Grams of random
    features it converges to |G|_2 itself. Eight iterations come within a few per cent.
    """
    magnitude = gram.abs()
    v = torch.ones_like(gram[..., :1])
    smallest = torch.finfo(gram.dtype).eps  # any rate is valid for a Gram of zeros; this keeps it finite
    bound = torch.full_like(gram[..., :1, :1], float("inf"))
    for _ in range(iterations):
        w = magnitude @ v
        bound = torch.minimum(bound, (w / v).amax((-2, -1), keepdim=True))
        v = (w / w.amax((-2, -1), keepdim=True).clamp_min(smallest)).clamp_min(1e-6)
    return 1 / bound.clamp_min(smallest)


RATES: dict[str, Callable[[Tensor], Tensor]] = {"gershgorin": gershgorin_rate, "power": power_rate}
