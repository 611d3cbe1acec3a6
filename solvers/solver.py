"""What a solver is: a small frozen dataclass that owns no parameters and builds the loop that integrates a field."""

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from solvers.field import Field
from solvers.representation import ShortRepr
from solvers.solution import Solution
from solvers.steady_state import SteadyState


@dataclass(frozen=True)
class Problem:
    """An initial value problem as a solver sees it, validated and in the precision of the solve.

    `save_at` is None (only the end), "steps", or times in the direction of integration.
    """

    field: Field
    t0: float
    t1: float
    save_at: tuple[float, ...] | Literal["steps"] | None
    until: SteadyState | None


class Loop(ABC):
    """The integration of one `Problem`, still to be run. Adjoints are handed this and decide how it is run."""

    problem: Problem

    @abstractmethod
    def run(self, y0: Tensor, args: Any) -> Solution:
        """Integrate from `y0`; differentiable by plain backpropagation where the solver's arithmetic is torch's."""


class SegmentedLoop(Loop):
    """A loop that can be run in segments of steps. What passes between them is the loop's own affair.

    A segment that is run again takes the same steps.
    """

    @property
    @abstractmethod
    def num_steps(self) -> int | None:
        """The most steps there can be; None where only the solve itself finds out."""

    @abstractmethod
    def start(self, y0: Tensor, args: Any) -> Any:
        """What the first segment is handed."""

    @abstractmethod
    def done(self, carry: Any) -> bool:
        """Whether every sample has stopped."""

    @abstractmethod
    def advance(self, carry: Any, args: Any, first: int, last: int) -> tuple[Any, dict[int, Tensor]]:
        """Take the steps `first`, ..., `last` - 1; what the next segment is handed, and what is to be saved."""

    @abstractmethod
    def finish(self, y0: Tensor, carry: Any, saved: dict[int, Tensor], args: Any) -> Solution:
        """Put the pieces together once all the segments have run."""

    def run(self, y0: Tensor, args: Any) -> Solution:
        last = sys.maxsize if self.num_steps is None else self.num_steps
        carry, saved = self.advance(self.start(y0, args), args, 0, last)
        return self.finish(y0, carry, saved, args)


class Solver(ShortRepr, ABC):
    """Base of all solvers. Concrete ones are frozen dataclasses registered by name."""

    reaches_equilibrium: ClassVar[bool] = False  # True: returns the limit t1 -> inf, whatever t1 is

    @abstractmethod
    def loop(self, problem: Problem) -> Loop:
        """The loop for `problem`; a ValueError where this solver cannot take it on."""


def require(field: Field, name: str, solver: Solver, meaning: str) -> Any:
    """An optional attribute of a field that `solver` cannot work without."""
    value = getattr(field, name, None)
    if value is None:
        raise ValueError(
            f"{type(solver).__name__} needs `{name}` of the field ({meaning}), which {type(field).__name__} does not "
            "offer; define it, or choose a solver that needs only the field's value, such as 'rk4'"
        )
    return value
