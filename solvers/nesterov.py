"""Accelerated fixed-point iteration with adaptive restart."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solvers.field import Field
from solvers.relaxation import RelaxationSolver
from solvers.stepping import Grid, Memory


@dataclass(frozen=True)
class Nesterov(RelaxationSolver):
    """Momentum on T(y) = y + f(y). On ProximalFlow it is FISTA (Beck & Teboulle 2009, eqs. 4.1 to 4.3).

    Momentum is dropped, sample by sample, when it points against the step (O'Donoghue & Candes 2015, the gradient
    scheme of section 3.2 with f in place of the negative gradient). It presumes that f is a (proximal) gradient step
    of a convex function, which `FixedPoint` does not. A field that knows better says so by `require_gradient(args)`.

    The iterate y is the extrapolated point, since that is where f is evaluated and found small.
    """

    def begin(self, field: Field, y0: Tensor, args: Any) -> Memory:
        if hasattr(field, "require_gradient"):
            field.require_gradient(args)
        weights = torch.tensor(_weights(self.max_steps), dtype=y0.dtype, device=y0.device)
        return y0.clone(), torch.zeros(y0.shape[0], dtype=torch.long, device=y0.device), _Constant(weights)

    def follows(self, grid: Grid) -> bool:
        return True

    def step(
        self, field: Field, t: Tensor, dt: float, y: Tensor, rate: Tensor, memory: Memory, args: Any
    ) -> tuple[Tensor, Memory]:
        return self.follow(y, y + rate, rate, memory, overwrite=False)

    def follow(
        self, y: Tensor, target: Tensor, rate: Tensor | None, memory: Memory, overwrite: bool
    ) -> tuple[Tensor, Memory]:
        previous, count, weights = memory  # count: steps since momentum was last dropped
        rate = target - y if rate is None else rate
        move = torch.sub(target, previous, out=previous if overwrite else None)
        with torch.no_grad():
            product = torch.mul(rate, move, out=rate if overwrite else None)
        against = product.reshape(len(y), y.shape[1:].numel()).sum(1) < 0
        count = count.masked_fill(against, 0)
        weight = weights.values[count].view(-1, *[1] * (y.ndim - 1))
        return torch.addcmul(target, weight, move, out=move if overwrite else None), (target, count + 1, weights)


@dataclass(frozen=True, eq=False)
class _Constant:
    """Keeps a tensor that is not of the batch apart from those that are, in the memory of a solve."""

    values: Tensor


def _momentum(longest: int) -> Iterator[float]:
    """Of the n-th step after momentum was dropped: (t_n - 1) / t_(n + 1), where t_0 = 1."""
    t = 1.0
    for _ in range(longest):
        following = (1 + math.sqrt(1 + 4 * t * t)) / 2
        yield (t - 1) / following
        t = following


_KEPT = 2000  # the default of max_steps
_WEIGHTS = tuple(_momentum(_KEPT))


def _weights(steps: int) -> tuple[float, ...]:
    return _WEIGHTS[:steps] if steps <= _KEPT else tuple(_momentum(steps))
