"""Solvers that move the whole batch by common steps, and the one loop that runs them all.

Fixed-step Runge-Kutta methods and relaxation methods differ in their step alone. The loop evaluates the field at the
current state, looks whether samples are steady, and hands the value on to the step. Samples that are done keep their
state while their batch mates go on, so an answer never depends on the company it was computed in.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from solvers.checks import rate_of_state
from solvers.field import Field
from solvers.saving import SavePlan
from solvers.solution import Solution, Status
from solvers.solver import Loop, Problem, Solver
from solvers.steady_state import SteadyState, max_norm

Memory = tuple[Any, ...]
Interpolation = Literal["linear", "hermite"]


class Grid(NamedTuple):
    """The times of the steps. `open_ended`: there is no end to reach, only a limit to the number of steps."""

    times: list[float]
    open_ended: bool

    @property
    def num_steps(self) -> int:
        return len(self.times) - 1


class SteppingSolver(Solver):
    """Base of solvers with one step for the whole batch."""

    @property
    @abstractmethod
    def evals_per_step(self) -> int:
        """Field evaluations in a step, the loop's own included."""

    @property
    @abstractmethod
    def interpolation(self) -> Interpolation:
        """How states between steps are found: "hermite" for methods whose order linear interpolation would spoil."""

    @abstractmethod
    def grid(self, problem: Problem) -> Grid:
        """The step grid for a problem; a ValueError if there is none."""

    @abstractmethod
    def step(
        self, field: Field, t: Tensor, dt: float, y: Tensor, rate: Tensor, memory: Memory, args: Any
    ) -> tuple[Tensor, Memory]:
        """One step from (t, y), where rate = field(t, y, args), to (next y, next memory)."""

    def begin(self, field: Field, y0: Tensor, args: Any) -> Memory:
        """What the method carries from step to step beside the state: tensors, batch first, and constants."""
        return ()

    def stopping_rule(self, problem: Problem) -> SteadyState | None:
        """When a sample is done before the end of the grid."""
        return problem.until

    def loop(self, problem: Problem) -> "SteppingLoop":
        grid = self.grid(problem)
        plan = SavePlan.on_grid(problem.save_at, grid.times)
        return SteppingLoop(replace(problem, until=self.stopping_rule(problem)), self, grid, plan)


class Watch(NamedTuple):
    """Per-sample bookkeeping of a solve that may stop samples early, all (batch,)."""

    active: Tensor
    status: Tensor
    num_steps: Tensor
    num_field_evals: Tensor
    residual: Tensor

    @classmethod
    def begin(cls, y0: Tensor) -> "Watch":
        batch, device = y0.shape[0], y0.device
        count = torch.zeros(batch, dtype=torch.long, device=device)
        return cls(
            active=torch.ones(batch, dtype=torch.bool, device=device),
            status=torch.full_like(count, Status.MAX_STEPS_REACHED),
            num_steps=count,
            num_field_evals=count,
            residual=torch.full((batch,), math.inf, dtype=y0.dtype, device=device),
        )

    def check(self, rate: Tensor, y: Tensor, until: SteadyState, evals: int = 1) -> "Watch":
        """Retire the samples whose `rate` at `y` is small enough, or no longer a number."""
        norm = max_norm(rate)
        steady = self.active & until.reached(norm, y)
        broken = self.active & ~norm.isfinite()
        status = torch.where(steady, int(Status.STEADY_STATE), self.status)
        return Watch(
            active=self.active & ~steady & ~broken,
            status=torch.where(broken, int(Status.NONFINITE), status),
            num_steps=self.num_steps,
            num_field_evals=self.num_field_evals + evals * self.active,
            residual=torch.where(self.active, norm.to(self.residual.dtype), self.residual),
        )

    def stepped(self, evals: int) -> "Watch":
        return self._replace(
            num_steps=self.num_steps + self.active, num_field_evals=self.num_field_evals + evals * self.active
        )


class Carry(NamedTuple):
    """All that passes from one step to the next. `rate` is the field at (t, y) where it is known already."""

    y: Tensor
    rate: Tensor | None
    memory: Memory
    watch: Watch | None
    residual: Tensor | None  # the mean rate over the last step of the grid, where it was taken


Saved = dict[int, Tensor]  # position in the saved trajectory -> state


@dataclass(frozen=True)
class SteppingLoop(Loop):
    """The steps of a `SteppingSolver` over a grid, in one go (`run`) or segment by segment (`advance`)."""

    problem: Problem
    solver: SteppingSolver
    grid: Grid
    plan: SavePlan

    @property
    def num_steps(self) -> int:
        """The most steps there can be."""
        return self.grid.num_steps

    def run(self, y0: Tensor, args: Any) -> Solution:
        carry, saved = self.advance(self.start(y0, args), args, 0, self.num_steps)
        return self.finish(y0, carry, saved, args)

    def start(self, y0: Tensor, args: Any) -> Carry:
        memory = self.solver.begin(self.problem.field, y0, args)
        return Carry(y0, None, memory, Watch.begin(y0) if self.problem.until else None, None)

    def done(self, carry: Carry) -> bool:
        """Whether every sample has stopped (waits for the device to answer)."""
        return carry.watch is not None and not bool(carry.watch.active.any())

    def advance(self, carry: Carry, args: Any, first: int, last: int) -> tuple[Carry, Saved]:
        """Take the steps `first`, ..., `last` - 1; returns the states to be saved on the way as well."""
        y, rate, memory, watch, residual = carry
        solver, field, until = self.solver, self.problem.field, self.problem.until
        times = torch.tensor(self.grid.times[first : last + 1], dtype=y.dtype, device=y.device)
        saved: Saved = {}
        for n in range(first, last):
            t, dt = times[n - first], self.grid.times[n + 1] - self.grid.times[n]
            known = rate is not None
            if rate is None:
                rate = field(t, y, args)
                rate_of_state(rate, y)
            if watch is not None and until is not None:
                watch = watch.check(rate, y, until, evals=0 if known else 1)
                if not bool(watch.active.any()):
                    break
            y_next, memory_next = solver.step(field, t, dt, y, rate, memory, args)
            if watch is not None:
                watch = watch.stepped(solver.evals_per_step - 1)
                y_next = _where(watch.active, y_next, y)
                kept = zip(memory_next, memory, strict=True)
                memory_next = tuple(_keep(watch.active, new, old) for new, old in kept)
            if n == self.num_steps - 1:
                residual = max_norm((y_next - y) / dt)
            rate_next = None
            if self.plan.needs_end_rate(n, solver.interpolation):
                rate_next = field(times[n + 1 - first], y_next, args)
                if watch is not None:
                    watch = watch._replace(num_field_evals=watch.num_field_evals + watch.active)
                    rate, rate_next = (_where(watch.active, r, torch.zeros_like(r)) for r in (rate, rate_next))
            self.plan.record(saved, n, dt, y, y_next, rate, rate_next)
            y, rate, memory = y_next, rate_next, memory_next
        return Carry(y, rate, memory, watch, residual), saved

    def finish(self, y0: Tensor, carry: Carry, saved: Saved, args: Any) -> Solution:
        """Put the pieces together once all the segments have run."""
        y1, watch = carry.y, carry.watch
        if watch is None:
            status, stats = self._plain_outcome(carry)
        else:
            status, stats = self._watched_outcome(carry, watch, args)
        status = torch.where(max_norm(y1).isfinite(), status, int(Status.NONFINITE))
        ts, ys = self.plan.assemble(saved, y0, y1, self.grid.times)
        return Solution(ts=ts, ys=ys, y1=y1, status=status, stats=stats)

    def _plain_outcome(self, carry: Carry) -> tuple[Tensor, dict[str, Tensor]]:
        y1, steps = carry.y, self.num_steps
        residual = carry.residual if carry.residual is not None else y1.new_zeros(y1.shape[0])
        num_steps = torch.full((y1.shape[0],), steps, dtype=torch.long, device=y1.device)
        evals = steps * self.solver.evals_per_step + self.plan.extra_evals(steps, self.solver.interpolation)
        stats = _stats(num_steps, torch.full_like(num_steps, evals), residual)
        return torch.full_like(num_steps, int(Status.SUCCESS)), stats

    def _watched_outcome(self, carry: Carry, watch: Watch, args: Any) -> tuple[Tensor, dict[str, Tensor]]:
        until, times = self.problem.until, self.grid.times
        if self.grid.open_ended and until is not None and not self.done(carry):
            t_end = torch.tensor(times[-1], dtype=carry.y.dtype, device=carry.y.device)
            known = carry.rate is not None
            rate = carry.rate if carry.rate is not None else self.problem.field(t_end, carry.y, args)
            watch = watch.check(rate, carry.y, until, evals=0 if known else 1)
        status, residual = watch.status, watch.residual
        if not self.grid.open_ended:  # the end of the interval was reached, steady or not
            status = torch.where(watch.active, int(Status.SUCCESS), status)
            if carry.residual is not None:
                residual = torch.where(watch.active, carry.residual, residual)
        return status, _stats(watch.num_steps, watch.num_field_evals, residual)


def _stats(num_steps: Tensor, num_field_evals: Tensor, residual: Tensor) -> dict[str, Tensor]:
    return {
        "num_steps": num_steps,
        "num_accepted": num_steps,
        "num_rejected": torch.zeros_like(num_steps),
        "num_field_evals": num_field_evals,
        "residual": residual,
    }


def _keep(active: Tensor, new: Any, old: Any) -> Any:
    """Memory after a step: that of samples at rest stays, and so do constants."""
    return old if new is old else _where(active, new, old)


def _where(active: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(active.view(-1, *[1] * (new.ndim - 1)), new, old)
