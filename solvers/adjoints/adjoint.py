"""What an adjoint is: it is handed the loop and decides how gradients get back through it."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from solvers.solution import Solution
from solvers.solver import Loop


class Adjoint(ABC):
    """Base of all adjoints. Concrete ones are frozen dataclasses registered by name.

    Gradients reach `y0`, every tensor in `args` and the parameters of a field that is an nn.Module.
    """

    @abstractmethod
    def solve(self, loop: Loop, y0: Tensor, args: Any) -> Solution:
        """Run `loop` from `y0`; a ValueError where this adjoint is not defined for its solver."""
