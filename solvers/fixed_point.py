"""Fixed-point iteration."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from solvers.field import Field
from solvers.relaxation import RelaxationSolver
from solvers.stepping import Memory


@dataclass(frozen=True)
class FixedPoint(RelaxationSolver):
    """y <- y + f(y), Picard iteration: Euler with dt = 1, run to the end. On ProximalFlow it is ISTA."""

    def step(
        self, field: Field, t: Tensor, dt: float, y: Tensor, rate: Tensor, memory: Memory, args: Any
    ) -> tuple[Tensor, Memory]:
        return y + rate, memory
