"""The explicit midpoint rule."""

from dataclasses import dataclass
from typing import ClassVar

from solvers.fixed_step import ExplicitRungeKutta
from solvers.tableau import ButcherTableau


@dataclass(frozen=True)
class Midpoint(ExplicitRungeKutta):
    """The explicit midpoint rule (Runge 1895), order 2, two evaluations per step."""

    tableau: ClassVar[ButcherTableau] = ButcherTableau(
        order=2,
        a=((1 / 2,),),
        b=(0.0, 1.0),
        c=(0.0, 1 / 2),
    )
