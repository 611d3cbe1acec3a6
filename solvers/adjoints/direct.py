"""Backpropagation through the steps."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from solvers.adjoints.adjoint import Adjoint
from solvers.solution import Solution
from solvers.solver import Loop


@dataclass(frozen=True)
class Direct(Adjoint):
    """Discretise, then differentiate: the exact gradient of the numbers computed. Memory grows with the steps."""

    def solve(self, loop: Loop, y0: Tensor, args: Any) -> Solution:
        return loop.run(y0, args)
