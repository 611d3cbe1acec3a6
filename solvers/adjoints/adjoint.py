"""What an adjoint is: it is handed the loop and decides how gradients get back through it."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from solvers.representation import ShortRepr
from solvers.solution import Solution
from solvers.solver import Loop
from solvers.stepping import SteppingLoop


class Adjoint(ShortRepr, ABC):
    """Base of all adjoints. Concrete ones are frozen dataclasses registered by name.

    Gradients reach `y0`, every tensor in `args` and the parameters of a field that is an nn.Module.
    """

    @abstractmethod
    def solve(self, loop: Loop, y0: Tensor, args: Any) -> Solution:
        """Run `loop` from `y0`; a ValueError where this adjoint is not defined for its solver."""


def seeks_equilibrium(loop: Loop) -> bool:
    """Whether the solve ends where the field vanishes, or as near as its steps get, and not at a given t1."""
    return loop.problem.until is not None or (isinstance(loop, SteppingLoop) and loop.grid.open_ended)
