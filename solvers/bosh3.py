"""The Bogacki-Shampine 3(2) pair."""

from dataclasses import dataclass
from typing import ClassVar

from solvers.adaptive import EmbeddedRungeKutta


@dataclass(frozen=True)
class Bosh3(EmbeddedRungeKutta):
    """Bogacki & Shampine, A 3(2) pair of Runge-Kutta formulas, Appl. Math. Lett. 1989: order 3.

    Three evaluations per step: for loose tolerances, 1e-3 or so. Back end torchdiffeq: one step size for the batch.
    """

    method: ClassVar[str] = "bosh3"
