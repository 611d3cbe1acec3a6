"""Per-sample bookkeeping that the solvers with error control share."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solvers.solution import Solution, Status
from solvers.solver import Problem
from solvers.steady_state import SteadyState, max_norm
from solvers.tracing import on_host

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


def smallest_step(problem: Problem, t: Any) -> Any:
    """Below this length, in the float64 that times are kept in, t + dt no longer means much; for numbers or arrays.

    Relative to t, and near t = 0 to the interval, or to 1 where the interval is longer.
    """
    scale = min(1.0, abs(last_time(problem) - problem.t0))
    return 4 * np.finfo(np.float64).eps * np.maximum(np.abs(t), scale)


def norms(*tensors: Tensor) -> np.ndarray:
    """The largest magnitude per sample of each, (tensors, batch), in one transfer from the device."""
    return on_host(torch.stack([max_norm(tensor) for tensor in tensors]))


class Bookkeeping:
    """Which samples are still active, how the others ended and at what cost; arrays on the host, all (batch,).

    The loops report every trial step to it. Error control decides by values, so none of this is traced.
    """

    def __init__(self, batch: int, until: SteadyState | None, max_steps: int) -> None:
        self.until = until
        self.max_steps = max_steps
        self.active = np.ones(batch, dtype=bool)
        self.status = np.full(batch, int(Status.SUCCESS))
        self.num_steps = np.zeros(batch, dtype=np.int64)
        self.num_accepted = np.zeros(batch, dtype=np.int64)
        self.num_field_evals = np.zeros(batch, dtype=np.int64)
        self.residual = np.full(batch, math.inf)

    @property
    def done(self) -> bool:
        return not self.active.any()

    def begin(self, evals: int, size: np.ndarray, norm: np.ndarray) -> None:
        """The start has the largest magnitude `size`, and the field there `norm`, after `evals` evaluations."""
        self.num_field_evals += evals * self.active
        self.stop(~(np.isfinite(size) & np.isfinite(norm)), Status.NONFINITE)
        self._reach(self.active, size, norm)

    def trial(
        self,
        accepted: np.ndarray,
        ended: np.ndarray,
        evals: int,
        size: np.ndarray | None = None,
        norm: np.ndarray | None = None,
    ) -> np.ndarray:
        """One trial step of every active sample; returns which samples moved.

        Args:
            accepted: by the error control.
            ended: samples for which this step leads to the end of the interval.
            evals: evaluations of the field.
            size, norm: the largest magnitude of the new state and of the field there, where a stopping rule or the
                residual needs them.
        """
        moved = accepted & self.active
        self.num_steps += self.active
        self.num_accepted += moved
        self.num_field_evals += evals * self.active
        if norm is not None and size is not None:
            self._reach(moved, size, norm)
        self.stop(moved & ended, Status.SUCCESS)
        self.stop(self.num_steps >= self.max_steps, Status.MAX_STEPS_REACHED)
        return moved

    def underflow(self, which: np.ndarray, nonfinite: np.ndarray) -> None:
        """Steps of `which` became too small; `nonfinite` where the last trial gave infinities or NaN."""
        self.stop(which & nonfinite, Status.NONFINITE)
        self.stop(which, Status.STEP_SIZE_TOO_SMALL)

    def fail(self, status: Status, norm: np.ndarray, evals: int) -> None:
        """The active samples cannot be integrated further; `norm` is that of the field at their last states."""
        self.num_field_evals += evals * self.active
        self.residual = np.where(self.active, norm, self.residual)
        self.stop(self.active, status)

    def stop(self, which: np.ndarray, status: Status) -> None:
        """End the active samples among `which` with `status`."""
        self.status = np.where(which & self.active, int(status), self.status)
        self.active = self.active & ~which

    def _reach(self, which: np.ndarray, size: np.ndarray, norm: np.ndarray) -> None:
        """Note the residual of the samples `which` at their new states, and stop those that are steady."""
        self.residual = np.where(which, norm, self.residual)
        if self.until is not None:
            self.stop(which & self.until.reached(norm, size), Status.STEADY_STATE)

    def solution(self, ts: Tensor, ys: Tensor, y1: Tensor) -> Solution:
        counts = {
            "num_steps": self.num_steps,
            "num_accepted": self.num_accepted,
            "num_rejected": self.num_steps - self.num_accepted,
            "num_field_evals": self.num_field_evals,
        }
        stats = {name: torch.from_numpy(count).to(y1.device) for name, count in counts.items()}
        stats["residual"] = torch.from_numpy(self.residual).to(y1.dtype).to(y1.device)
        status = torch.from_numpy(self.status).to(y1.device)
        # states that are saved inside a step may not be finite where its ends are
        return finite_or_failed(Solution(ts=ts, ys=ys, y1=y1, status=status, stats=stats))


def solution(problem: Problem, progress: Bookkeeping, y0: Tensor, y1: Tensor, saved: dict[float, Tensor]) -> Solution:
    """The solution for `save_at` None or times, given the states at times within the interval.

    Times that are not in `saved` lie after the end of the solve: there all samples have their last state.
    """
    if isinstance(problem.save_at, tuple):
        times = problem.save_at
        states = [y0 if t == problem.t0 else saved.get(t, y1) for t in times]
    else:
        times, states = (problem.t1,), [y1]
    return progress.solution(torch.tensor(times, dtype=y1.dtype, device=y1.device), torch.stack(states), y1)


def is_trivial(problem: Problem, y0: Tensor) -> bool:
    """Whether there is nothing to integrate: t0 = t1, or no elements."""
    return problem.t0 == problem.t1 or not y0.numel()


def trivial_solution(problem: Problem, y0: Tensor, per_sample: bool = True) -> Solution:
    """The solution where there is nothing to integrate; `per_sample`: whether samples have times of their own."""
    progress = Bookkeeping(len(y0), None, 1)
    progress.begin(0, *norms(y0, torch.zeros_like(y0)))
    if problem.save_at != "steps":
        return solution(problem, progress, y0, y0, {})
    ts = torch.full((1, len(y0)) if per_sample else (1,), problem.t0, dtype=y0.dtype, device=y0.device)
    return progress.solution(ts, y0[None], y0)


def interior_times(problem: Problem) -> list[float]:
    """The distinct times to save strictly after t0 and before the end, in the direction of integration."""
    if not isinstance(problem.save_at, tuple):
        return []
    return [t for t in dict.fromkeys(problem.save_at) if t not in (problem.t0, problem.t1)]


def finite_or_failed(solution: Solution) -> Solution:
    """With the status NONFINITE for samples that have a state which is not, whatever became of it after the solve."""
    finite = max_norm(solution.y1).isfinite() & max_norm(solution.ys.transpose(0, 1)).isfinite()
    return replace(solution, status=torch.where(finite, solution.status, int(Status.NONFINITE)))
