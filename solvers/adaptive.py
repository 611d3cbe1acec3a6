"""What the solvers with error control share."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from solvers.backends import torchdiffeq, torchode
from solvers.bookkeeping import check_horizon
from solvers.checks import non_negative_number, one_of, positive_int
from solvers.embedded import EmbeddedLoop
from solvers.solver import Loop, Problem, Solver
from solvers.tableau import EmbeddedTableau

Backend = Literal["native", "torchode", "torchdiffeq"]
_LIBRARIES = {
    "torchode": (torchode.METHODS, torchode.TorchodeLoop),
    "torchdiffeq": (torchdiffeq.METHODS, torchdiffeq.TorchdiffeqLoop),
}


@dataclass(frozen=True, kw_only=True)
class AdaptiveSolver(Solver):
    """Solvers that control their error: each step is as long as its error estimate allows.

    Args:
        rtol, atol: relative and absolute tolerance per step. The default asks for about four digits.
        max_steps: limit of trial steps per sample, rejected ones included.
    """

    rtol: float = 1e-4
    atol: float = 1e-6
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        non_negative_number("rtol", self.rtol)
        non_negative_number("atol", self.atol)
        if self.rtol == self.atol == 0:
            raise ValueError(
                "rtol and atol are both 0: no step is short enough for that; give one of them, or the number of steps "
                "to a fixed-step solver such as 'rk4'"
            )
        positive_int("max_steps", self.max_steps)


@dataclass(frozen=True, kw_only=True)
class EmbeddedRungeKutta(AdaptiveSolver):
    """Explicit Runge-Kutta methods with a second set of weights, whose result differs by about the step's error.

    A step from y to y' is accepted when the root mean square over a sample of error / (atol + rtol max(|y|, |y'|)) is
    below 1 (Hairer, Norsett & Wanner, Solving ODEs I, II.4). Each sample has steps of its own, whose size a PI
    controller chooses, the first one by Hairer's rule: other samples of the batch, badly scaled or nonfinite, have no
    influence on it. Step sizes are not differentiated.

    Times to be saved are interpolated, and `save_at="steps"` returns times (saved, batch), padded with each sample's
    last. `stats["residual"]` is exact: these methods end each step with an evaluation at the new state.

    The back ends "torchode" and "torchdiffeq" are other people's loops, to compare with. With torchdiffeq the batch has
    one step size, the smallest that any of its samples needs: answers stay within tolerance, but depend on the rest of
    the batch by about that tolerance, and every sample costs what the worst of them costs.

    Args:
        rtol, atol: relative and absolute tolerance per step. The default asks for about four digits; the rounding
            noise of float32 sets in a little below rtol = 1e-5.
        max_steps: limit of trial steps per sample, rejected ones included.
        backend: "native", or a library that has the method: "torchode" (dopri5, tsit5), "torchdiffeq" (bosh3, dopri5,
            dopri8).
    """

    tableau: ClassVar[EmbeddedTableau]

    backend: Backend = "native"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backend is None:  # as the default was written into files before
            object.__setattr__(self, "backend", "native")
        known = [name for name, (methods, _) in _LIBRARIES.items() if self._name in methods]
        one_of(f"back end of {type(self).__name__}", self.backend, ["native", *known])

    def loop(self, problem: Problem) -> Loop:
        check_horizon(self, problem)
        if self.backend == "native":
            return EmbeddedLoop(problem, self.tableau, self.rtol, self.atol, self.max_steps)
        _, loop = _LIBRARIES[self.backend]
        return loop(problem, self._name, self.rtol, self.atol, self.max_steps)

    @property
    def _name(self) -> str:
        """As the libraries know it."""
        return type(self).__name__.lower()
