"""Per-sample bookkeeping that the solvers with error control share."""

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


class Bookkeeping:
    """Which samples are still active, how the others ended and at what cost; outside the autograd graph, all (batch,).

    The loops report every trial step to it. It is changed in place: error control decides by values, so none of
    this is traced.
    """

    def __init__(self, y0: Tensor, until: SteadyState | None, max_steps: int) -> None:
        batch, device = y0.shape[0], y0.device
        self.until = until
        self.max_steps = max_steps
        self.trials = 0
        self.active = torch.ones(batch, dtype=torch.bool, device=device)
        self.status = torch.full((batch,), int(Status.SUCCESS), device=device)
        self.num_steps = torch.zeros(batch, dtype=torch.long, device=device)
        self.num_accepted = torch.zeros_like(self.num_steps)
        self.num_field_evals = torch.zeros_like(self.num_steps)
        self.residual = torch.full((batch,), math.inf, dtype=y0.dtype, device=device)

    def begin(self, y: Tensor, rate: Tensor, evals: int) -> None:
        """The field's value at the start, `rate`, took `evals` evaluations."""
        self.num_field_evals += evals * self.active
        self.stop(~(max_norm(y).isfinite() & max_norm(rate).isfinite()), Status.NONFINITE)
        self._reach(self.active, y, rate)

    def trial(self, accepted: Tensor, y: Tensor, rate: Tensor, ended: Tensor, evals: int) -> Tensor:
        """One trial step of every active sample; returns which samples moved to `y`.

        `rate` is the field at `y` where the step was accepted. It is finite there, as the error estimate depends on it.
        """
        self.trials += 1
        moved = accepted & self.active
        self.num_steps += self.active
        self.num_accepted += moved
        self.num_field_evals += evals * self.active
        self._reach(moved, y, rate)
        self.stop(moved & ended, Status.SUCCESS)
        if self.trials >= self.max_steps:
            self.stop(self.num_steps >= self.max_steps, Status.MAX_STEPS_REACHED)
        return moved

    def underflow(self, which: Tensor, nonfinite: Tensor) -> None:
        """Steps of `which` became too small; `nonfinite` where the last trial gave infinities or NaN."""
        if bool(which.any()):
            self.stop(which & nonfinite, Status.NONFINITE)
            self.stop(which, Status.STEP_SIZE_TOO_SMALL)

    def fail(self, status: Status, rate: Tensor, evals: int) -> None:
        """The active samples cannot be integrated further; `rate` is the field at their last states."""
        self.num_field_evals += evals * self.active
        self.residual = torch.where(self.active, max_norm(rate), self.residual)
        self.stop(self.active, status)

    def stop(self, which: Tensor, status: Status) -> None:
        """End the active samples among `which` with `status`."""
        self.status = torch.where(which & self.active, int(status), self.status)
        self.active = self.active & ~which

    def _reach(self, which: Tensor, y: Tensor, rate: Tensor) -> None:
        """Note the residual of the samples `which` at their new states `y`, and stop those that are steady."""
        norm = max_norm(rate)
        self.residual = torch.where(which, norm, self.residual)
        if self.until is not None:
            self.stop(which & self.until.reached(norm, y), Status.STEADY_STATE)

    def stats(self) -> dict[str, Tensor]:
        return {
            "num_steps": self.num_steps,
            "num_accepted": self.num_accepted,
            "num_rejected": self.num_steps - self.num_accepted,
            "num_field_evals": self.num_field_evals,
            "residual": self.residual,
        }


def solution(problem: Problem, progress: Bookkeeping, y0: Tensor, y1: Tensor, saved: dict[float, Tensor]) -> Solution:
    """The solution for `save_at` None or times, given the states at times within the interval.

    Times that are not in `saved` lie after the end of the solve: there all samples have their last state.
    """
    if isinstance(problem.save_at, tuple):
        times = problem.save_at
        states = [y0 if t == problem.t0 else saved.get(t, y1) for t in times]
    else:
        times, states = (problem.t1,), [y1]
    ts = torch.tensor(times, dtype=y1.dtype, device=y1.device)
    return Solution(ts=ts, ys=torch.stack(states), y1=y1, status=progress.status, stats=progress.stats())


def trivial_solution(problem: Problem, y0: Tensor, per_sample: bool) -> Solution | None:
    """The solution where there is nothing to integrate: t0 = t1, or no elements. Else None."""
    if problem.t0 != problem.t1 and y0.numel():
        return None
    progress = Bookkeeping(y0, None, 1)
    progress.begin(y0, torch.zeros_like(y0), 0)
    if problem.save_at != "steps":
        return solution(problem, progress, y0, y0, {})
    ts = torch.full((1, y0.shape[0]) if per_sample else (1,), problem.t0, dtype=y0.dtype, device=y0.device)
    return Solution(ts=ts, ys=y0[None], y1=y0, status=progress.status, stats=progress.stats())


def interior_times(problem: Problem) -> list[float]:
    """The distinct times to save strictly after t0 and before the end, in the direction of integration."""
    if not isinstance(problem.save_at, tuple):
        return []
    return [t for t in dict.fromkeys(problem.save_at) if t not in (problem.t0, problem.t1)]
