"""What the solvers with error control share."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from solvers.backends import torchdiffeq, torchode
from solvers.bookkeeping import check_horizon
from solvers.checks import non_negative_number, one_of, positive_int
from solvers.solver import Loop, Problem, Solver

Backend = Literal["torchode", "torchdiffeq"]
# in order of preference: with torchode a sample's answer does not depend on the rest of its batch
_LOOPS = {
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
    below 1 (Hairer, Norsett & Wanner, Solving ODEs I, II.4). The step sizes themselves are not differentiated.

    `stats["residual"]` is exact: these methods end each step with an evaluation at the new state.

    With the back end torchode each sample has steps of its own: other samples of the batch, badly scaled or nonfinite,
    have no influence on it, times to be saved are interpolated (order 4), and `save_at="steps"` returns times
    (saved, batch), padded with each sample's last. With torchdiffeq the batch has one step size, the smallest that any
    of its samples needs: answers stay within tolerance, but depend on the rest of the batch by about that tolerance,
    and every sample costs what the worst of them costs. Samples that are steady or have failed no longer count in the
    error control. A time to be saved inside a step costs a shorter step of its own.

    Args:
        rtol, atol: relative and absolute tolerance per step. The default asks for about four digits; the rounding
            noise of float32 sets in a little below rtol = 1e-5.
        max_steps: limit of trial steps per sample, rejected ones included.
        backend: "torchode" or "torchdiffeq"; by default the first of these that has the method.
    """

    method: ClassVar[str]

    backend: Backend | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backend is not None:
            one_of(f"back end of {type(self).__name__}", self.backend, self._backends())

    def loop(self, problem: Problem) -> Loop:
        check_horizon(self, problem)
        _, loop = _LOOPS[self.backend or self._backends()[0]]
        return loop(problem, self.method, self.rtol, self.atol, self.max_steps)

    def _backends(self) -> list[str]:
        return [name for name, (methods, _) in _LOOPS.items() if self.method in methods]
