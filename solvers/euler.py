"""Explicit Euler: y + h f(t, y)."""

from dataclasses import dataclass
from typing import ClassVar

from solvers.fixed_step import ExplicitRungeKutta
from solvers.tableau import ButcherTableau


@dataclass(frozen=True)
class Euler(ExplicitRungeKutta):
    """Explicit Euler, order 1, one evaluation per step.

    With dt = 1 it is fixed-point iteration on y + f(y): ISTA on the fields of sparse reconstruction.
    """

    tableau: ClassVar[ButcherTableau] = ButcherTableau(
        order=1,
        a=(),
        b=(1.0,),
        c=(0.0,),
    )
