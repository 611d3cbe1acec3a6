"""Tsitouras' 5(4) pair."""

from dataclasses import dataclass
from typing import ClassVar

from solvers.adaptive import EmbeddedRungeKutta


@dataclass(frozen=True)
class Tsit5(EmbeddedRungeKutta):
    """Tsitouras, Runge-Kutta pairs of order 5(4), Comput. Math. Appl. 2011: order 5.

    Six evaluations per step and somewhat smaller error constants than `Dopri5`. Back end torchode: one step size per
    sample.
    """

    method: ClassVar[str] = "tsit5"
