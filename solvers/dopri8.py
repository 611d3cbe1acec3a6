"""The Dormand-Prince 8(7) pair."""

from dataclasses import dataclass
from typing import ClassVar

from solvers.adaptive import EmbeddedRungeKutta


@dataclass(frozen=True)
class Dopri8(EmbeddedRungeKutta):
    """Prince & Dormand, High order embedded Runge-Kutta formulae, J. Comput. Appl. Math. 1981: order 8.

    Thirteen evaluations per step: for tolerances of 1e-8 and below, in float64. Back end torchdiffeq: one step size for
    the batch.
    """

    method: ClassVar[str] = "dopri8"
