"""The Bogacki-Shampine 3(2) pair."""

from dataclasses import dataclass
from typing import ClassVar

from solvers.adaptive import EmbeddedRungeKutta
from solvers.tableau import ButcherTableau, EmbeddedTableau, hermite

_B = (2 / 9, 1 / 3, 4 / 9, 0.0)


@dataclass(frozen=True)
class Bosh3(EmbeddedRungeKutta):
    """Bogacki & Shampine, A 3(2) pair of Runge-Kutta formulas, Appl. Math. Lett. 1989: order 3.

    Three evaluations per step: for loose tolerances, 1e-3 or so. Dense output of order 3.
    """

    tableau: ClassVar[EmbeddedTableau] = EmbeddedTableau(
        method=ButcherTableau(
            order=3,
            a=((1 / 2,), (0.0, 3 / 4), _B[:3]),
            b=_B,
            c=(0.0, 1 / 2, 3 / 4, 1.0),
        ),
        error_order=2,
        b_error=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
        dense_order=3,
        dense=hermite(_B),
    )
