"""Per-sample bookkeeping that the back ends of error-controlled solvers share."""

import math
from typing import Any

import torch
from torch import Tensor

from solvers.solution import Solution, Status
from solvers.solver import Problem
from solvers.steady_state import SteadyState, max_norm

OPEN_END = 1e30  # stands for t1 = inf, where only a steady state or the step limit ends a solve; float32 can hold it


def check_horizon(solver: Any, problem: Problem) -> None:
    """An infinite horizon needs a rule that ends it."""
    if math.isinf(problem.t1) and problem.until is None:
        raise ValueError(
            f"{type(solver).__name__} cannot reach t1={problem.t1}: give a finite t1, until=SteadyState(...), or a "
            "relaxation solver such as 'nesterov'"
        )


def last_time(problem: Problem) -> float:
    return problem.t1 if math.isfinite(problem.t1) else math.copysign(OPEN_END, problem.t1)


def smallest_step(problem: Problem, t: Tensor | float) -> Tensor:
    """Below this length, in the float64 that times are kept in, t + dt no longer means much.

    Relative to t, and near t = 0 to the interval, or to 1 where the interval is longer.
    """
    scale = min(1.0, abs(last_time(problem) - problem.t0))
    return 4 * torch.finfo(torch.float64).eps * torch.as_tensor(t, dtype=torch.float64).abs().clamp_min(scale)


class Ledger:
    """Who is still going, how the others ended and what it cost; outside the autograd graph, all (batch,).

    The back ends report every trial step to it. It is changed in place: error control decides by values, so none of
    this is traced.
    """

    def __init__(self, y0: Tensor, until: SteadyState | None, max_steps: int) -> None:
        batch, device = y0.shape[0], y0.device
        self.until = until
        self.max_steps = max_steps
        self.trials = 0
        self.going = torch.ones(batch, dtype=torch.bool, device=device)
        self.status = torch.full((batch,), int(Status.SUCCESS), device=device)
        self.num_steps = torch.zeros(batch, dtype=torch.long, device=device)
        self.num_accepted = torch.zeros_like(self.num_steps)
        self.num_field_evals = torch.zeros_like(self.num_steps)
        self.residual = torch.full((batch,), math.inf, dtype=y0.dtype, device=device)

    def begin(self, y: Tensor, rate: Tensor, evals: int) -> None:
        """The field's value at the start, `rate`, took `evals` evaluations."""
        self.num_field_evals += evals * self.going
        self.retire(~(max_norm(y).isfinite() & max_norm(rate).isfinite()), Status.NONFINITE)
        self._arrive(self.going, y, rate)

    def trial(self, accepted: Tensor, y: Tensor, rate: Tensor, ended: Tensor, evals: int) -> Tensor:
        """One trial step of every sample that is going; `rate` at `y` where accepted. Returns who moved to `y`.

        An accepted rate is finite, since it has a share in the error estimate.
        """
        self.trials += 1
        moved = accepted & self.going
        self.num_steps += self.going
        self.num_accepted += moved
        self.num_field_evals += evals * self.going
        self._arrive(moved, y, rate)
        self.retire(moved & ended, Status.SUCCESS)
        if self.trials >= self.max_steps:
            self.retire(self.num_steps >= self.max_steps, Status.MAX_STEPS_REACHED)
        return moved

    def underflow(self, which: Tensor, blown: Tensor) -> None:
        """Steps of `which` became too small; `blown` where the last trial gave no finite numbers."""
        if bool(which.any()):
            self.retire(which & blown, Status.NONFINITE)
            self.retire(which, Status.STEP_SIZE_TOO_SMALL)

    def fail(self, status: Status, rate: Tensor, evals: int) -> None:
        """Those that are going cannot; `rate` is the field at their last states."""
        self.num_field_evals += evals * self.going
        self.residual = torch.where(self.going, max_norm(rate), self.residual)
        self.retire(self.going, status)

    def retire(self, which: Tensor, status: Status) -> None:
        self.status = torch.where(which & self.going, int(status), self.status)
        self.going = self.going & ~which

    def _arrive(self, which: Tensor, y: Tensor, rate: Tensor) -> None:
        norm = max_norm(rate)
        self.residual = torch.where(which, norm, self.residual)
        if self.until is not None:
            self.retire(which & self.until.reached(norm, y), Status.STEADY_STATE)

    def stats(self) -> dict[str, Tensor]:
        return {
            "num_steps": self.num_steps,
            "num_accepted": self.num_accepted,
            "num_rejected": self.num_steps - self.num_accepted,
            "num_field_evals": self.num_field_evals,
            "residual": self.residual,
        }


def solution(problem: Problem, ledger: Ledger, y0: Tensor, y1: Tensor, saved: dict[float, Tensor]) -> Solution:
    """The solution for `save_at` None or times, given the states at times within the interval.

    Times that are not in `saved` lie behind the end, where all samples hold their last state.
    """
    if isinstance(problem.save_at, tuple):
        times = problem.save_at
        states = [y0 if t == problem.t0 else saved.get(t, y1) for t in times]
    else:
        times, states = (problem.t1,), [y1]
    ts = torch.tensor(times, dtype=y1.dtype, device=y1.device)
    return Solution(ts=ts, ys=torch.stack(states), y1=y1, status=ledger.status, stats=ledger.stats())


def unmoved(problem: Problem, y0: Tensor, per_sample: bool) -> Solution | None:
    """The solution where there is nothing to integrate: t0 = t1, or no elements. Else None."""
    if problem.t0 != problem.t1 and y0.numel():
        return None
    ledger = Ledger(y0, None, 1)
    ledger.begin(y0, torch.zeros_like(y0), 0)
    if problem.save_at != "steps":
        return solution(problem, ledger, y0, y0, {})
    ts = torch.full((1, y0.shape[0]) if per_sample else (1,), problem.t0, dtype=y0.dtype, device=y0.device)
    return Solution(ts=ts, ys=y0[None], y1=y0, status=ledger.status, stats=ledger.stats())


def inside(problem: Problem) -> list[float]:
    """The distinct times to save strictly after t0 and before the end, in the direction of integration."""
    if not isinstance(problem.save_at, tuple):
        return []
    return [t for t in dict.fromkeys(problem.save_at) if t not in (problem.t0, problem.t1)]
