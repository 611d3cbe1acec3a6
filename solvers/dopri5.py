"""The Dormand-Prince 5(4) pair."""

from dataclasses import dataclass
from typing import ClassVar

from solvers.adaptive import EmbeddedRungeKutta
from solvers.tableau import ButcherTableau, EmbeddedTableau

_B = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0)
_EMBEDDED = (5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40)


@dataclass(frozen=True)
class Dopri5(EmbeddedRungeKutta):
    """Dormand & Prince, A family of embedded Runge-Kutta formulae, J. Comput. Appl. Math. 1980: order 5.

    Six evaluations per step. Dense output of order 4, so with an error of the order of the steps' own: Shampine, Some
    practical Runge-Kutta formulas, Math. Comp. 1986.
    """

    tableau: ClassVar[EmbeddedTableau] = EmbeddedTableau(
        method=ButcherTableau(
            order=5,
            a=(
                (1 / 5,),
                (3 / 40, 9 / 40),
                (44 / 45, -56 / 15, 32 / 9),
                (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
                (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
                _B[:6],
            ),
            b=_B,
            c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
        ),
        error_order=4,
        b_error=tuple(b - embedded for b, embedded in zip(_B, _EMBEDDED, strict=True)),
        dense_order=4,
        dense=(
            (1.0, -8048581381 / 2820520608, 8663915743 / 2820520608, -12715105075 / 11282082432),
            (0.0, 0.0, 0.0, 0.0),
            (0.0, 131558114200 / 32700410799, -68118460800 / 10900136933, 87487479700 / 32700410799),
            (0.0, -1754552775 / 470086768, 14199869525 / 1410260304, -10690763975 / 1880347072),
            (0.0, 127303824393 / 49829197408, -318862633887 / 49829197408, 701980252875 / 199316789632),
            (0.0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844),
            (0.0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423),
        ),
    )
