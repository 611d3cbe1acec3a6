"""The Dormand-Prince 5(4) pair."""

from dataclasses import dataclass
from typing import ClassVar

from solvers.adaptive import EmbeddedRungeKutta


@dataclass(frozen=True)
class Dopri5(EmbeddedRungeKutta):
    """Dormand & Prince, A family of embedded Runge-Kutta formulae, J. Comput. Appl. Math. 1980: order 5.

    The usual choice, six evaluations per step. Back end torchode by default: one step size per sample.
    """

    method: ClassVar[str] = "dopri5"
