"""Step bounds: rates eta <= 1 / |G|_2, under which ISTA descends.

A rate is computed from the Gram without gradient, as it is part of the method and not of the problem; `detach` says so
to forward-mode differentiation too.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@torch.no_grad()
def gershgorin_rate(gram: Tensor) -> Tensor:
    """1 / (1 + max_i sum_j |G_ij|), (..., 1, 1): the bound of the authors' code. Safe, and often twice too small."""
    return 1 / (gram.detach().abs().sum(-1).amax(-1) + 1)[..., None, None]


@torch.no_grad()
def power_rate(gram: Tensor, iterations: int = 3) -> Tensor:
    """1 / L with L >= |G|_2 from power iteration, (..., 1, 1).

    Plain power iteration approaches |G|_2 from below, which would make the step too long. For v > 0 the largest
    (|G| v)_i / v_i bounds it from above (Collatz 1942) at every iteration, and for the positive Grams of random
    features it converges to |G|_2 itself. Three iterations come within 2 per cent; `vars-ode bench rates`
    prints that and their cost.
    """
    magnitude = gram.detach().abs()
    smallest = torch.finfo(gram.dtype).eps  # a Gram of zeros bears any rate: keep to a finite one
    w = magnitude.sum(-1, keepdim=True)  # |G| v for v = 1
    bound = w.amax((-2, -1), keepdim=True)
    for _ in range(iterations - 1):
        v = (w / w.amax(-2, keepdim=True).clamp_min(smallest)).clamp_min(1e-6)
        w = magnitude @ v
        bound = torch.minimum(bound, (w / v).amax((-2, -1), keepdim=True))
    return 1 / bound.clamp_min(smallest)


RATES: dict[str, Callable[[Tensor], Tensor]] = {"gershgorin": gershgorin_rate, "power": power_rate}


@dataclass(frozen=True)
class StepBound:
    """The rate that a layer's `rate` asks for on a Gram, (..., 1, 1), or a number's as a tensor without dimensions.

    Args:
        choice: a number, or a name out of `RATES`.
    """

    choice: float | str

    def __call__(self, gram: Tensor) -> Tensor:
        return RATES[self.choice](gram) if isinstance(self.choice, str) else gram.new_full((), self.choice)

    @property
    def is_fixed(self) -> bool:
        """Whether it is a number that the Gram has no say in."""
        return not isinstance(self.choice, str)
