"""What relaxation methods share: they iterate T(y) = y + f(y) to its fixed point, the flow's equilibrium."""

from dataclasses import dataclass
from typing import ClassVar

from solvers.checks import non_negative_number, positive_int
from solvers.solver import Problem
from solvers.steady_state import SteadyState
from solvers.stepping import Grid, Interpolation, SteppingSolver, check_num_steps


@dataclass(frozen=True)
class RelaxationSolver(SteppingSolver):
    """Iterates until max|f(y)| <= atol + rtol max|y|, sample by sample.

    The answer is the limit t1 -> inf whatever `t1` says. Time counts iterations, so `save_at` times are iteration
    numbers. `until`, where given, replaces this solver's own tolerances.

    With rtol = atol = 0 there is no tolerance to reach: exactly `max_steps` iterations are made, and the status
    MAX_STEPS_REACHED is what was asked for, not a failure. No sample stops early then, so that such a solve does not
    branch on its data and traces under torch.compile.

    Args:
        max_steps: limit of iterations; a sample that reaches it has the status MAX_STEPS_REACHED.
        rtol, atol: the tolerance; the defaults lie a little above the rounding noise of float32.
    """

    reaches_equilibrium: ClassVar[bool] = True

    max_steps: int = 2000
    rtol: float = 1e-5
    atol: float = 1e-6

    @property
    def evals_per_step(self) -> int:
        return 1

    @property
    def interpolation(self) -> Interpolation:
        return "linear"

    def __post_init__(self) -> None:
        positive_int("max_steps", self.max_steps)
        non_negative_number("rtol", self.rtol)
        non_negative_number("atol", self.atol)

    def grid(self, problem: Problem) -> Grid:
        if problem.t1 < problem.t0:
            raise ValueError(
                f"{type(self).__name__} looks for the limit t1 -> inf, got t1={problem.t1} before t0={problem.t0}; "
                "leave t1 out, or integrate backwards with a solver such as 'rk4'"
            )
        check_num_steps(self, self.max_steps)
        return Grid([problem.t0 + n for n in range(self.max_steps + 1)], open_ended=True)

    def stopping_rule(self, problem: Problem) -> SteadyState | None:
        if problem.until is None and self.rtol == self.atol == 0:
            return None
        return problem.until or SteadyState(rtol=self.rtol, atol=self.atol)
