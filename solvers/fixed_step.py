"""What fixed-step solvers share: the grid, and the explicit Runge-Kutta step."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from solvers.checks import positive_int, positive_number
from solvers.field import Field
from solvers.representation import short_repr
from solvers.solver import Problem
from solvers.stepping import Grid, Interpolation, Memory, SteppingSolver
from solvers.tableau import ButcherTableau

_NATURAL = "natural"  # the dt of a representation: the field's own step
_WHOLE = 1e-9  # t1 - t0 within this of a multiple of dt counts as that multiple


@dataclass(frozen=True)
class FixedStepSolver(SteppingSolver):
    """Equal steps: `num_steps` of them, or as many of length `dt` as fit, the last one cut to end at t1.

    With neither, the step is the field's own `natural_step`; a field without one is an error, since no length is right
    for every field. The number of steps is a Python integer, so that a solve traces under torch.compile.

    Args:
        num_steps: the number of steps from t0 to t1.
        dt: their length, positive also for a solve backwards in time; None for the field's own, which may be written
            as "natural" too, the way it is displayed.
    """

    num_steps: int | None = None
    dt: float | None = None

    def __post_init__(self) -> None:
        if self.dt == _NATURAL:
            object.__setattr__(self, "dt", None)
        if self.num_steps is not None and self.dt is not None:
            raise ValueError(
                f"num_steps={self.num_steps} and dt={self.dt} were both given; each fixes the grid, so give one of them"
            )
        if self.num_steps is not None:
            positive_int("num_steps", self.num_steps)
        if self.dt is not None:
            positive_number("dt", self.dt)

    def grid(self, problem: Problem) -> Grid:
        t0, t1 = problem.t0, problem.t1
        if abs(t1) == math.inf:
            return self._open_grid(problem)
        if t0 == t1:
            return Grid([t0], open_ended=False)
        if self.num_steps is not None:
            steps, dt = self.num_steps, (t1 - t0) / self.num_steps
        else:
            dt = math.copysign(self.step_length(problem.field), t1 - t0)
            steps = max(1, math.ceil((t1 - t0) / dt - _WHOLE))
        return Grid([*(t0 + n * dt for n in range(steps)), t1], open_ended=False)

    def _open_grid(self, problem: Problem) -> Grid:
        name = type(self).__name__
        if problem.until is None:
            raise ValueError(
                f"{name} cannot reach t1={problem.t1}: give a finite t1, until=SteadyState(...), or a relaxation "
                "solver such as 'nesterov'"
            )
        if self.num_steps is not None:
            raise ValueError(f"{name}(num_steps={self.num_steps}) cannot divide t1={problem.t1}; give dt instead")
        dt = math.copysign(self.step_length(problem.field), problem.t1)
        return Grid([problem.t0 + n * dt for n in range(problem.until.max_steps + 1)], open_ended=True)

    def step_length(self, field: Field) -> float:
        """The length of the steps on `field`: `dt`, or in its absence the field's own; `num_steps` plays no part."""
        if self.dt is not None:
            return self.dt
        step = getattr(field, "natural_step", None)
        if step is None:
            name, kind = type(self).__name__, type(field).__name__
            raise ValueError(
                f"{name} was given neither num_steps nor dt, and the field ({kind}) has no `natural_step` to take "
                f"instead: give {name}(num_steps=...) or {name}(dt=...), define `natural_step` on the field, or let an "
                "adaptive solver such as 'tsit5' choose the steps"
            )
        positive_number("the field's natural_step", step)
        return float(step)

    @property
    def stability_limit(self) -> float:
        """The longest step that is stable on y' = -y; infinite here, for methods that have none."""
        return math.inf

    def with_step_of(self, t1: float, t0: float = 0.0) -> "FixedStepSolver":
        """The solver for other horizons than [t0, t1]: `num_steps` over that one become the `dt` that they are."""
        if self.num_steps is None or t0 == t1 or math.isinf(t1):
            return self
        return replace(self, num_steps=None, dt=abs(t1 - t0) / self.num_steps)

    def __repr__(self) -> str:
        return short_repr(self, **({} if self.num_steps or self.dt else {"dt": _NATURAL}))


@dataclass(frozen=True)
class ExplicitRungeKutta(FixedStepSolver):
    """Runs a `tableau`; the methods themselves are data."""

    tableau: ClassVar[ButcherTableau]

    @property
    def order(self) -> int:
        return self.tableau.order

    @property
    def stability_limit(self) -> float:
        return self.tableau.stability_limit

    @property
    def evals_per_step(self) -> int:
        return self.tableau.num_stages

    @property
    def interpolation(self) -> Interpolation:
        return "linear" if self.order == 1 else "hermite"

    def step(
        self, field: Field, t: Tensor, dt: float, y: Tensor, rate: Tensor, memory: Memory, args: Any
    ) -> tuple[Tensor, Memory]:
        rates = [rate]
        for row, node in zip(self.tableau.a, self.tableau.c[1:], strict=True):
            rates.append(field(t + node * dt, _combine(y, dt, row, rates), args))
        return _combine(y, dt, self.tableau.b, rates), memory


def _combine(y: Tensor, dt: float, weights: tuple[float, ...], rates: list[Tensor]) -> Tensor:
    """y + dt sum_i w_i k_i, one fused multiply-add per non-zero weight."""
    for weight, rate in zip(weights, rates, strict=True):
        if weight:
            y = y.add(rate, alpha=dt * weight)
    return y
