"""Heun's method, the explicit trapezoidal rule."""

from dataclasses import dataclass
from typing import ClassVar

from solvers.fixed_step import ExplicitRungeKutta
from solvers.tableau import ButcherTableau


@dataclass(frozen=True)
class Heun(ExplicitRungeKutta):
    """Heun's method (1900), order 2, two evaluations per step."""

    tableau: ClassVar[ButcherTableau] = ButcherTableau(
        order=2,
        a=((1.0,),),
        b=(1 / 2, 1 / 2),
        c=(0.0, 1.0),
    )
