"""Accelerated fixed-point iteration with adaptive restart."""

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
        return y0, y0.new_ones(y0.shape[0])

    def follows(self, grid: Grid) -> bool:
        return True

    def step(
        self, field: Field, t: Tensor, dt: float, y: Tensor, rate: Tensor, memory: Memory, args: Any
    ) -> tuple[Tensor, Memory]:
        return self.follow(y, y + rate, rate, memory)

    def follow(self, y: Tensor, target: Tensor, rate: Tensor | None, memory: Memory) -> tuple[Tensor, Memory]:
        previous, momentum = memory
        move = target - previous
        rate = target - y if rate is None else rate
        against = (rate.detach() * move.detach()).reshape(y.shape[0], -1).sum(1) < 0
        momentum = torch.where(against, 1.0, momentum)
        next_momentum = (1 + torch.sqrt(1 + 4 * momentum**2)) / 2
        weight = torch.where(against, 0.0, (momentum - 1) / next_momentum)
        extrapolated = torch.addcmul(target, weight.view(-1, *[1] * (y.ndim - 1)), move)
        return extrapolated, (target, next_momentum)
