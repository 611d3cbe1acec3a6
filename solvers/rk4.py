"""The classical Runge-Kutta method."""

from dataclasses import dataclass
from typing import ClassVar

from solvers.fixed_step import ExplicitRungeKutta
from solvers.tableau import ButcherTableau


@dataclass(frozen=True)
class RK4(ExplicitRungeKutta):
    """The classical method (Kutta 1901), order 4, four evaluations per step."""

    tableau: ClassVar[ButcherTableau] = ButcherTableau(
        order=4,
        a=((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
        b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
        c=(0.0, 1 / 2, 1 / 2, 1.0),
    )
