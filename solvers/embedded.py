"""The loop of the embedded Runge-Kutta methods: every sample takes steps of its own size.

Times, step sizes and statuses are kept on the host: a step asks the device for the errors that it made, once.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from solvers.bookkeeping import Bookkeeping, interior_times, is_trivial, norms, solution, trivial_solution
from solvers.solution import Solution
from solvers.solver import Problem, SegmentedLoop
from solvers.stages import Stepper
from solvers.steady_state import max_norm
from solvers.step_control import StepControl
from solvers.tableau import EmbeddedTableau
from solvers.tracing import on_host, refuse_vmap
from solvers.tree import tensors

Saved = dict[int, Tensor]  # trial -> the states that it adds to the trajectory, (rows, ...)


class Save(NamedTuple):
    """Where states go in the saved trajectory: positions and samples, (rows,), and their times, which broadcast."""

    position: np.ndarray
    sample: np.ndarray
    time: np.ndarray


@dataclass
class Trial:
    """A step that was tried, as far as it takes to try it again with the same outcome; arrays are (batch,).

    Attributes:
        t: where the samples stood.
        attempts: the signed steps from there; a second attempt leaves out samples that were not finite.
        moved: which samples took the step.
        saves: what of it is saved.
    """

    t: np.ndarray
    attempts: list[np.ndarray]
    moved: np.ndarray
    saves: list[Save]


@dataclass
class Run:
    """What the host knows of a solve.

    Attributes:
        stepper, progress, control: its arithmetic, what became of its samples, and their step sizes.
        times: to be saved, in the direction of integration.
        saves: all so far.
        trials: all so far, where derivatives are recorded, so that a segment can be computed once more.
    """

    stepper: Stepper
    progress: Bookkeeping
    control: StepControl
    times: np.ndarray
    saves: list[Save] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)


class Carry(NamedTuple):
    """What passes from one step to the next: states and the field there, (batch, ...); without a run there is nothing
    to integrate."""

    y: Tensor
    rate: Tensor
    run: Run | None


@dataclass(frozen=True)
class EmbeddedLoop(SegmentedLoop):
    """One problem, integrated by the method of `tableau`.

    Decisions by values are not for torch.compile: a model around this loop is compiled up to it and behind it.
    """

    problem: Problem
    tableau: EmbeddedTableau
    rtol: float
    atol: float
    max_steps: int

    @property
    def num_steps(self) -> None:
        """The errors decide."""

    @torch.compiler.disable
    def start(self, y0: Tensor, args: Any) -> Carry:
        refuse_vmap("error control", [y0, *tensors(args)])
        if is_trivial(self.problem, y0):
            return Carry(y0, y0, None)
        y = y0.contiguous()
        run = Run(
            Stepper(self.problem.field, self.tableau, self.rtol, self.atol, y, args),
            Bookkeeping(len(y), self.problem.until, self.max_steps),
            StepControl(self.problem, self.tableau.error_order + 1, len(y)),
            np.array(interior_times(self.problem)),
        )
        rate = run.stepper.rate_at(run.stepper.per_sample(run.control.t), y)
        refuse_vmap("error control", [rate])
        with torch.no_grad():
            self._choose_first_steps(run, y, rate)
        return Carry(y, rate, run)

    def _choose_first_steps(self, run: Run, y: Tensor, rate: Tensor) -> None:
        stepper, progress, control, scale = run.stepper, run.progress, run.control, run.stepper.scale(y, y)
        measures = [max_norm(y), max_norm(rate), stepper.rms(y / scale), stepper.rms(rate / scale)]
        largest, norm, size, speed = on_host(torch.stack(measures))
        progress.begin(1, largest, norm)
        if progress.done:
            return
        step = control.probe(size, speed)
        probe = torch.addcmul(y, stepper.per_sample(step), rate)
        ahead = stepper.rate_at(stepper.per_sample(control.t + step), probe)
        control.begin(on_host(stepper.rms((ahead - rate) / scale)))
        progress.num_field_evals += progress.active

    def done(self, carry: Carry) -> bool:
        return carry.run is None or carry.run.progress.done

    @torch.compiler.disable
    def advance(self, carry: Carry, args: Any, first: int, last: int) -> tuple[Carry, Saved]:
        y, rate, run = carry
        saved: Saved = {}
        if run is None:
            return carry, saved
        stepper = run.stepper
        for n in range(first, last):
            if n < len(run.trials):
                trial = run.trials[n]
                y_next = [stepper.step(trial.t, step, y, rate) for step in trial.attempts][-1]
            elif run.progress.done:
                break
            else:
                trial, y_next = self._try(run, y, rate)
            rate, rate_next = stepper.stages.first, stepper.stages.last
            if trial.saves:
                saved[n] = torch.cat([self._states(stepper, trial, save, y, y_next) for save in trial.saves])
            y, rate = _chosen(trial.moved, y_next, y), _chosen(trial.moved, rate_next, rate)
        return Carry(y, rate, run), saved

    def _try(self, run: Run, y: Tensor, rate: Tensor) -> tuple[Trial, Tensor]:
        """One trial step of all active samples, and where it leads."""
        stepper, control, progress = run.stepper, run.control, run.progress
        start, step, evals = control.t, control.next_steps(progress.active), self.tableau.method.num_stages - 1
        attempts, y_next = [step], stepper.step(start, step, y, rate)
        ratio, *largest = stepper.measure(y, y_next, progress.until is not None)
        nonfinite = progress.active & ~np.isfinite(ratio)
        if stepper.recorded and nonfinite.any():
            # The mask of a rejected step has the gradient 0 times a Jacobian: NaN, if that is not finite.
            attempts.append(np.where(nonfinite, 0.0, step))
            y_next = stepper.step(start, attempts[-1], y, rate)
        moved = progress.trial(ratio <= 1, control.ends, len(attempts) * evals, *largest)
        control.adapt(ratio, step, moved)
        progress.underflow(control.too_small, nonfinite)
        trial = Trial(start, attempts, moved, self._saves(run, start, moved))
        run.saves += trial.saves
        if stepper.recorded:
            run.trials.append(trial)
        return trial, y_next

    def _saves(self, run: Run, start: np.ndarray, moved: np.ndarray) -> list[Save]:
        """What is saved of a step that began at `start`."""
        reached, progress = run.control.t, run.progress
        if self.problem.save_at == "steps":
            (sample,) = moved.nonzero()
            return [Save(progress.num_accepted[sample], sample, reached[sample])] if len(sample) else []
        if not len(run.times):
            return []
        ordered = run.control.direction * run.times
        first, after = (ordered.searchsorted(run.control.direction * t, side="right") for t in (start, reached))
        inside = ((n, ((first <= n) & (n < after)).nonzero()[0]) for n in range(first.min(), after.max()))
        saves = [Save(np.full(len(sample), n), sample, run.times[n]) for n, sample in inside if len(sample)]
        if self.tableau.dense_order is None:
            for save in saves:
                progress.num_field_evals[save.sample] += self.tableau.method.num_stages - 2
        return saves

    def _states(self, stepper: Stepper, trial: Trial, save: Save, y: Tensor, y_next: Tensor) -> Tensor:
        """The states to be saved, (rows, ...)."""
        if self.problem.save_at == "steps":
            return stepper.rows(y_next, save.sample)
        return stepper.inside(trial.t, trial.attempts[-1], float(save.time), save.sample, y)

    @torch.compiler.disable
    def finish(self, y0: Tensor, carry: Carry, saved: Saved, args: Any) -> Solution:
        run, y1 = carry.run, carry.y
        if run is None:
            return trivial_solution(self.problem, y0)
        progress = run.progress
        (norm,) = norms(carry.rate)
        progress.residual = np.where(np.isfinite(progress.residual), norm, progress.residual)
        if self.problem.save_at is None:
            return solution(self.problem, progress, y0, y1, {})
        positions = len(run.times) if self.problem.save_at != "steps" else 1 + int(progress.num_accepted.max())
        times = np.tile(run.control.t, (positions, 1))
        row = np.tile(np.arange(len(y1)), (positions, 1))  # of the last states, which stand for all later times
        count = len(y1)
        for position, sample, time in run.saves:
            times[position, sample] = time
            row[position, sample] = count + np.arange(len(sample))
            count += len(sample)
        rows = torch.cat([y1, *saved.values()])
        ys = rows[torch.from_numpy(row).to(rows.device)]
        if self.problem.save_at != "steps":
            return solution(self.problem, progress, y0, y1, dict(zip(run.times.tolist(), ys, strict=True)))
        times[0] = self.problem.t0
        return progress.solution(torch.from_numpy(times).to(y1.dtype).to(y1.device), torch.cat([y0[None], ys[1:]]), y1)


def _chosen(moved: np.ndarray, new: Tensor, old: Tensor) -> Tensor:
    if moved.all():
        return new
    return torch.where(torch.from_numpy(moved).to(new.device).view(-1, *[1] * (new.ndim - 1)), new, old)
