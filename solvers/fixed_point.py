"""Fixed-point iteration."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from solvers.field import Field
from solvers.relaxation import RelaxationSolver
from solvers.stepping import Grid, Memory


@dataclass(frozen=True)
class FixedPoint(RelaxationSolver):
    """y <- y + f(y), Picard iteration: Euler with dt = 1, run to the end. On ProximalFlow it is ISTA."""

    def follows(self, grid: Grid) -> bool:
        return True

    def follow(
        self, y: Tensor, target: Tensor, rate: Tensor | None, memory: Memory, overwrite: bool
    ) -> tuple[Tensor, Memory]:
        return target, memory

    def step(
        self, field: Field, t: Tensor, dt: float, y: Tensor, rate: Tensor, memory: Memory, args: Any
    ) -> tuple[Tensor, Memory]:
        return y + rate, memory
