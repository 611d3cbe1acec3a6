"""Solvers that move the whole batch by common steps, and the one loop that runs them all.

Fixed-step Runge-Kutta methods and relaxation methods differ in their step alone. The loop evaluates the field at the
current state, tests which samples are steady, and hands the value on to the step. Samples that have stopped keep their
state while the others are integrated further, so no sample's answer depends on the rest of its batch.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from solvers.checks import CheckedField, rate_of_state
from solvers.field import Field, defines, iterates
from solvers.saving import SavePlan
from solvers.solution import Solution, Status
from solvers.solver import Problem, SegmentedLoop, Solver
from solvers.steady_state import SteadyState, largest_change, max_norm
from solvers.tracing import is_recorded, is_transformed, values
from solvers.tree import tensors

Memory = tuple[Any, ...]
Interpolation = Literal["linear", "hermite"]


MOST_STEPS = 10_000_000  # more are a mistake: their times alone would fill the memory


def check_num_steps(solver: Any, num_steps: float) -> None:
    """A ValueError for more steps than any solve takes."""
    if num_steps > MOST_STEPS:
        raise ValueError(
            f"{solver} would take {num_steps:g} steps, and at most {MOST_STEPS:,} are possible: lengthen the steps, "
            "shorten the interval, or let an adaptive or relaxation solver find the end"
        )


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
        """One step from (t, y), where rate = field(t, y, args), to (next y, next memory).

        The next memory is laid out as `memory`: tensors of the same shapes, and the same constants.
        """

    def begin(self, field: Field, y0: Tensor, args: Any) -> Memory:
        """What the method carries from step to step beside the state: a tuple of tensors, batch first, and of
        constants, objects that every step returns as they are."""
        return ()

    def follows(self, grid: Grid) -> bool:
        """Whether steps on `grid` ask no more of the field than T(y) = y + f(t, y), and so can be taken by `follow`.

        Then a field's `iterate` is used, which makes T(y) in one pass, where f(t, y) + y takes two more.
        """
        return False

    def follow(
        self, y: Tensor, target: Tensor, rate: Tensor | None, memory: Memory, overwrite: bool
    ) -> tuple[Tensor, Memory]:
        """The step from y, where target = T(y), as `step` returns it.

        `rate` is target - y, where the loop had a use for it; else None. With `overwrite` the memory of `rate` and of
        what `memory` holds, earlier targets included, may be used again for the results, as nothing else reads it.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say that it follows a grid")

    def stopping_rule(self, problem: Problem) -> SteadyState | None:
        """When a sample stops before the end of the grid; None: never."""
        return problem.until

    def loop(self, problem: Problem) -> "SteppingLoop":
        grid = self.grid(problem)
        plan = SavePlan.on_grid(problem.save_at, grid.times)
        rule = self.stopping_rule(problem)
        return SteppingLoop(problem if rule is problem.until else replace(problem, until=rule), self, grid, plan)


class Progress(NamedTuple):
    """Per-sample bookkeeping of a solve that may stop samples early: what a sample came to is noted when it stops.

    Those that go on have all taken as many steps, so that a step on which none stops costs a check only.

    Attributes:
        until: the stopping rule.
        active: which samples go on, (batch,).
        status, num_steps, num_field_evals, residual: of those that have stopped, (batch,).
        latest: the residuals at the last check, (batch,).
        kept: the last states of those that have stopped, where the loop goes on with all samples and forgets what
            becomes of these. None where it holds them still, sample by sample, which takes a pass over memory per step.
        steps, evals: of the active samples.
        some_stopped, done: whether any sample, and whether every sample has stopped.
    """

    until: SteadyState
    active: Tensor
    status: Tensor
    num_steps: Tensor
    num_field_evals: Tensor
    residual: Tensor
    latest: Tensor
    kept: Tensor | None
    steps: int = 0
    evals: int = 0
    some_stopped: bool = False
    done: bool = False

    @classmethod
    def begin(cls, y0: Tensor, until: SteadyState, hold_still: bool) -> "Progress":
        batch, device = y0.shape[0], y0.device
        count = torch.zeros(batch, dtype=torch.long, device=device)
        return cls(
            until=until,
            active=torch.ones(batch, dtype=torch.bool, device=device),
            status=torch.full_like(count, Status.MAX_STEPS_REACHED),
            num_steps=count,
            num_field_evals=count,
            residual=torch.full((batch,), math.inf, dtype=y0.dtype, device=device),
            latest=torch.full((batch,), math.inf, dtype=y0.dtype, device=device),
            kept=None if hold_still else y0.clone(),
            done=batch == 0,
        )

    def check(self, rate: Tensor, y: Tensor) -> "Progress":
        """Stop the samples whose `rate` at `y` is small enough, or not finite."""
        norm, size = max_norm(rate), max_norm(y)
        progress = self._replace(latest=norm)
        stopping = self.active > self.until.in_motion(norm, size)
        return progress._stop(stopping, size, y) if bool(values(stopping).any()) else progress

    def _stop(self, stopping: Tensor, size: Tensor, y: Tensor) -> "Progress":
        broken = ~(self.latest < math.inf)
        stopping = stopping & (broken | (size < math.inf))
        active = self.active > stopping
        status = torch.where(broken, int(Status.NONFINITE), int(Status.STEADY_STATE))
        if self.kept is not None:  # no gradient is recorded
            self.kept[stopping] = y[stopping]
        return self._replace(
            active=active,
            status=torch.where(stopping, status, self.status),
            num_steps=torch.where(stopping, self.steps, self.num_steps),
            num_field_evals=torch.where(stopping, self.evals, self.num_field_evals),
            residual=torch.where(stopping, self.latest.to(self.residual.dtype), self.residual),
            some_stopped=True,
            done=not bool(values(active).any()),
        )

    def stepped(self, evals: int) -> "Progress":
        return self._replace(steps=self.steps + 1, evals=self.evals + evals)

    def evaluated(self) -> "Progress":
        """After one evaluation beside those of the steps."""
        return self._replace(evals=self.evals + 1)

    def states(self, running: Tensor) -> Tensor:
        """The last state of every sample, given the running one."""
        return running if self.kept is None or not self.some_stopped else _where(self.active, running, self.kept)

    def stats(self) -> dict[str, Tensor]:
        return _stats(
            torch.where(self.active, self.steps, self.num_steps),
            torch.where(self.active, self.evals, self.num_field_evals),
            torch.where(self.active, self.latest.to(self.residual.dtype), self.residual),
        )


class Carry(NamedTuple):
    """All that passes from one step to the next. `rate` is the field at (t, y) where it is known already."""

    y: Tensor
    rate: Tensor | None
    memory: Memory
    progress: Progress | None  # None: no sample stops early
    change: Tensor | None  # the largest one in the last step of the grid, (batch,), where it was taken


Saved = dict[int, Tensor]  # position in the saved trajectory -> state


@dataclass(frozen=True)
class SteppingLoop(SegmentedLoop):
    """The steps of a `SteppingSolver` over a grid, in one go (`run`) or segment by segment (`advance`)."""

    problem: Problem
    solver: SteppingSolver
    grid: Grid
    plan: SavePlan

    @property
    def num_steps(self) -> int:
        return self.grid.num_steps

    def start(self, y0: Tensor, args: Any) -> Carry:
        memory = self.solver.begin(self.problem.field, y0, args)
        if not isinstance(memory, tuple):
            raise ValueError(
                f"{type(self.solver).__name__}.begin must return a tuple, the memory that its steps carry, got "
                f"{_layout(memory)}; return () for none"
            )
        until = self.problem.until
        hold_still = torch.is_grad_enabled() or self.plan.save_at is not None or is_transformed([y0])
        return Carry(y0, None, memory, Progress.begin(y0, until, hold_still) if until else None, None)

    def done(self, carry: Carry) -> bool:
        return carry.progress is not None and carry.progress.done

    def advance(self, carry: Carry, args: Any, first: int, last: int) -> tuple[Carry, Saved]:
        y, _, memory, progress, change = carry  # local names: on small problems the loop's own time matters
        rate: Any = carry.rate  # known, or found in each step unless nothing reads it
        target: Any = None
        solver, field, grid = self.solver, self.problem.field, self.grid.times
        iterate, new = self._iteration(y, args)
        overwrite = new and (progress is None or progress.kept is not None)
        times = () if iterate else torch.tensor(grid[first : last + 1], dtype=y.dtype, device=y.device)
        saving = self.plan.save_at is not None
        final = None if self.grid.open_ended else self.num_steps - 1
        saved: Saved = {}
        for n in range(first, last):
            dt, known = grid[n + 1] - grid[n], rate is not None
            if iterate:
                target = iterate(y) if n else rate_of_state(iterate(y), y)
                rate = target - y if progress else None
            elif rate is None:
                rate = rate_of_state(field(times[n - first], y, args), y)
            if progress:
                progress = (progress if known else progress.evaluated()).check(rate, y)
                if progress.done:
                    break
            if iterate:
                stepped = solver.follow(y, target, rate, memory, overwrite)
            else:
                checked = field if n else CheckedField(field)  # later steps do not pay for it
                stepped = solver.step(checked, times[n - first], dt, y, rate, memory, args)
            if n == 0:
                _check_step(solver, stepped, y, memory)
            y_next, memory_next = stepped
            if progress:
                progress = progress.stepped(solver.evals_per_step - 1)
                if progress.some_stopped and progress.kept is None:
                    y_next, memory_next = _stopped_keep(progress.active, (y_next, memory_next), (y, memory))
            if n == final:
                change = largest_change(y, y_next)
            rate_next = None
            if saving and self.plan.needs_end_rate(n, solver.interpolation):
                rate_next = field(times[n + 1 - first], y_next, args)
                if progress:
                    progress = progress.evaluated()
                    rate, rate_next = (_where(progress.active, r, torch.zeros_like(r)) for r in (rate, rate_next))
            if saving:
                self.plan.record(saved, n, dt, y, y_next, rate, rate_next)
            y, rate, memory = y_next, rate_next, memory_next
        return Carry(y, rate, memory, progress, change), saved

    def _iteration(self, y: Tensor, args: Any) -> tuple[Callable[[Tensor], Tensor] | None, bool]:
        """y -> T(y), if the field offers it and the solver has a use for it; and whether each result is a new tensor.

        Preparing it pays for the many steps of a relaxation; in a graph it would only add to what is kept, and
        transforms of functions do not bear that memory is used again.
        """
        field: Any = self.problem.field
        if not (iterates(field) and self.solver.follows(self.grid)):
            return None, False
        prepares = defines(type(field), "iteration", "iterate", "__call__", "forward")
        if prepares and self.grid.open_ended and not is_recorded([y, *tensors(args)]):
            return field.iteration(args), True
        return lambda y: field.iterate(y, args), False

    def finish(self, y0: Tensor, carry: Carry, saved: Saved, args: Any) -> Solution:
        y1, progress = carry.y, carry.progress
        if progress is None:
            status, stats = self._common_outcome(carry, args)
        else:
            progress = self._last_check(progress, carry, args)
            y1, (status, stats) = progress.states(y1), self._outcome_by_sample(progress, carry)
        if carry.change is None or progress is not None:
            status = torch.where(max_norm(y1).isfinite(), status, int(Status.NONFINITE))
        ts, ys = self.plan.assemble(saved, y0, y1, self.grid.times)
        every_step = progress is None and self.grid.open_ended
        return Solution(ts=ts, ys=ys, y1=y1, status=status, stats=stats, limit_is_goal=every_step)

    def _common_outcome(self, carry: Carry, args: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Of a solve whose samples all take every step."""
        y1, steps = carry.y, self.num_steps
        evals = steps * self.solver.evals_per_step + self.plan.extra_evals(steps, self.solver.interpolation)
        outcome = Status.SUCCESS
        residual = y1.new_zeros(y1.shape[0]) if carry.change is None else self._mean_rate(carry.change)
        if self.grid.open_ended:  # iterates of momentum methods do not move by the field's value, so it is looked up
            outcome, evals = Status.MAX_STEPS_REACHED, evals + 1
            with torch.no_grad():
                residual = max_norm(self.problem.field(self._end_of_grid(y1), y1, args))
        num_steps, evaluated = (torch.full(y1.shape[:1], count, device=y1.device) for count in (steps, evals))
        if carry.change is not None:  # not finite where the last state is not
            status = torch.where(carry.change < math.inf, int(outcome), int(Status.NONFINITE))
        else:
            status = torch.full_like(num_steps, int(outcome))
        return status, _stats(num_steps, evaluated, residual)

    def _last_check(self, progress: Progress, carry: Carry, args: Any) -> Progress:
        """After the check of the last state, where only a limit to the steps ended the solve."""
        if progress.done or not self.grid.open_ended:
            return progress
        rate = carry.rate
        if rate is None:
            rate, progress = self.problem.field(self._end_of_grid(carry.y), carry.y, args), progress.evaluated()
        return progress.check(rate, carry.y)

    def _outcome_by_sample(self, progress: Progress, carry: Carry) -> tuple[Tensor, dict[str, Tensor]]:
        """Of a solve that may stop samples early."""
        status, stats = progress.status, progress.stats()
        if not self.grid.open_ended:  # the end of the interval was reached, steady or not
            status = torch.where(progress.active, int(Status.SUCCESS), status)
            if carry.change is not None:
                stats["residual"] = torch.where(progress.active, self._mean_rate(carry.change), stats["residual"])
        return status, stats

    def _mean_rate(self, change: Tensor) -> Tensor:
        """Over the last step."""
        step = abs(self.grid.times[-1] - self.grid.times[-2])  # which the type of the state may not hold
        return change / max(step, torch.finfo(change.dtype).tiny)

    def _end_of_grid(self, y: Tensor) -> Tensor:
        return torch.tensor(self.grid.times[-1], dtype=y.dtype, device=y.device)


def _check_step(solver: SteppingSolver, stepped: Any, y: Tensor, memory: Memory) -> None:
    """Refuse a step whose result the loop cannot carry to the next one. Called for the first step only."""
    name = type(solver).__name__
    if not isinstance(stepped, tuple) or len(stepped) != 2:
        raise ValueError(f"{name}.step must return the pair (next y, next memory), got {_layout(stepped)}")
    y_next, memory_next = stepped
    if not isinstance(y_next, Tensor) or y_next.shape != y.shape:
        raise ValueError(f"{name}.step must return a next y of y's shape, {tuple(y.shape)}, got {_layout(y_next)}")
    if y_next.dtype != y.dtype:
        raise ValueError(f"{name}.step must return a next y of y's type, {y.dtype}, got {y_next.dtype}")
    fits = isinstance(memory_next, tuple) and len(memory_next) == len(memory)
    if not fits or not all(_carries(new, old, len(y)) for new, old in zip(memory_next, memory, strict=True)):
        raise ValueError(
            f"{name}.step must return a memory laid out as the one it was given, {_layout(memory)}, got "
            f"{_layout(memory_next)}: tensors, batch first, keep their shapes, and constants are returned as they are"
        )


def _carries(new: Any, old: Any, batch: int) -> bool:
    """Whether `new` can take the place of `old` in the memory."""
    if new is old:
        return True
    tensors = isinstance(new, Tensor) and isinstance(old, Tensor)
    return tensors and new.shape == old.shape and new.shape[:1] == (batch,)


def _layout(value: Any) -> str:
    """Of what a solver returned: shapes and types, no values."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_layout, value))})"
    return type(value).__name__


def _stats(num_steps: Tensor, num_field_evals: Tensor, residual: Tensor) -> dict[str, Tensor]:
    return {
        "num_steps": num_steps,
        "num_accepted": num_steps,
        "num_rejected": torch.zeros_like(num_steps),
        "num_field_evals": num_field_evals,
        "residual": residual,
    }


def _stopped_keep(active: Tensor, new: tuple[Tensor, Memory], old: tuple[Tensor, Memory]) -> tuple[Tensor, Memory]:
    """State and memory after a step: samples that have stopped keep theirs, and constants stay."""
    pairs = zip(new[1], old[1], strict=True)
    return _where(active, new[0], old[0]), tuple(a if a is b else _where(active, a, b) for a, b in pairs)


def _where(active: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(active.view(-1, *[1] * (new.ndim - 1)), new, old)
