"""torchdiffeq: Runge-Kutta steps of one size for the whole batch, controlled by its most demanding sample.

Chen, torchdiffeq, https://github.com/rtqichen/torchdiffeq; Chen et al. 2018, arXiv 1806.07366.

`odeint` ends in a bare assertion when the step becomes too small or a state is not finite, loses the states it had
reached by then, and does not test for steady states. So it is run in segments, by means of its public callbacks: a
segment ends where a sample stops, or before the assertion would fail, and the next one begins with the states and the
step size that the last one ended with. The rate of samples that have stopped is zero from then on.

Its interpolation is of order 4 whatever the method, too little for dopri8. A state inside a step is found by a
shorter step of the same method from the same start.
"""

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solvers.bookkeeping import (
    Bookkeeping,
    interior_times,
    is_trivial,
    last_time,
    norms,
    smallest_step,
    solution,
    trivial_solution,
)
from solvers.checks import rate_of_state
from solvers.solution import Solution
from solvers.solver import Loop, Problem
from solvers.steady_state import max_norm
from solvers.tracing import on_host, refuse_transforms
from solvers.tree import tensors

METHODS = {"bosh3": 3, "dopri5": 5, "dopri8": 8}  # and their orders


@dataclass(frozen=True)
class TorchdiffeqLoop(Loop):
    """One problem, integrated by torchdiffeq."""

    problem: Problem
    method: str
    rtol: float
    atol: float
    max_steps: int

    def run(self, y0: Tensor, args: Any) -> Solution:
        refuse_transforms("the back end torchdiffeq", [y0, *tensors(args)], "take 'tsit5', 'dopri5' or fixed steps")
        if is_trivial(self.problem, y0):
            return trivial_solution(self.problem, y0, per_sample=False)
        return self._integrate(y0, args)

    def _integrate(self, y0: Tensor, args: Any) -> Solution:
        problem = self.problem
        run = _Run(self, y0, args, Bookkeeping(len(y0), problem.until, self.max_steps))
        while not run.progress.done:
            run.begin_segment()
            with contextlib.suppress(_SegmentEnd):
                self.advance(run, run.t, run.y, run.end, run.first_step())
        if problem.save_at != "steps":
            saved = {t: run.returned(y) for t, y in run.saved.items()}
            return solution(problem, run.progress, y0, run.returned(run.y), saved)
        times, states = zip(*run.steps, strict=True)
        ts = torch.tensor(times, dtype=y0.dtype, device=y0.device)
        ys = torch.stack([run.returned(y) for y in states])
        return run.progress.solution(ts, ys, ys[-1])

    def advance(self, run: "_Run | _SubStep", t: float, y: Tensor, end: float, first_step: float) -> None:
        """One call of `odeint`, whose last step ends at `end` exactly."""
        from torchdiffeq import odeint  # imported late, as it takes a second

        times = torch.tensor([t, end], dtype=torch.float64, device=y.device)
        options = {"norm": run.norm, "first_step": first_step, "step_t": times[1:]}
        odeint(run, y, times, rtol=self.rtol, atol=self.atol, method=self.method, options=options)


class _SegmentEnd(Exception):
    """A sample has stopped, so the rates change and the solve has to be started again from the last state."""


class _Run:
    """The field as torchdiffeq sees it, with the callbacks by which torchdiffeq reports its steps.

    Attributes:
        t, y, rate: the last accepted state, (batch, ...), and the field there.
        trial_y, trial_rate: the same where the field was evaluated last.
        saved: states at the times asked for.
        dt: the length, positive, of the step that torchdiffeq proposed next; None if unknown.
    """

    def __init__(self, loop: TorchdiffeqLoop, y0: Tensor, args: Any, progress: Bookkeeping) -> None:
        problem = loop.problem
        self.loop = loop
        self.problem = problem
        self.args = args
        self.progress = progress
        self.end = last_time(problem)
        self.direction = 1.0 if self.end >= problem.t0 else -1.0
        self.saved: dict[float, Tensor] = {}
        self._to_save = interior_times(problem)
        self._y0, self._finite_start = y0, self._per_sample(max_norm(y0).isfinite(), y0)
        self.t, self.y = problem.t0, torch.where(self._finite_start, y0, 0.0)  # torchdiffeq refuses nonfinite states
        self.dt: float | None = None
        self.calls = 0
        self.rate = self._field(torch.tensor(problem.t0, dtype=y0.dtype, device=y0.device), self.y)
        progress.begin(self._take_calls(), *norms(y0, self.rate))
        self.error_ratio = torch.full((len(y0),), torch.inf, dtype=y0.dtype, device=y0.device)
        self.steps = [(self.t, self.y)]

    def returned(self, y: Tensor) -> Tensor:
        """States as they are returned: samples with a nonfinite start, solved as zero, get that start back."""
        return torch.where(self._finite_start, y, self._y0)

    @property
    def active(self) -> Tensor:
        return torch.from_numpy(self.progress.active).to(self.y.device)

    def begin_segment(self) -> None:
        self.trial_y, self.trial_rate = self.y, self.rate

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        rate = self.rate if y is self.y else self._field(t, y)  # known at the start of a segment from the one before
        self.trial_y, self.trial_rate = y, rate
        return torch.where(self._per_sample(self.active, y), rate, 0.0)

    @torch.no_grad()
    def first_step(self) -> float:
        """Hairer, Norsett & Wanner, Solving ODEs I, II.4, for each sample; the smallest, since the batch has one step.

        torchdiffeq's own guess has a factor of 100 instead of 30 and gives h f'(y) = -1 on fast linear decay, where the
        error estimate of bosh3 is exactly zero.
        """
        if self.dt is not None:
            return self.dt
        active, scale = self.active, self.loop.atol + self.loop.rtol * self.y.abs()
        size, speed = _rms(self.y / scale)[active], _rms(self.rate / scale)[active]
        h = torch.where((size < 1e-5) | (speed < 1e-5), 1e-6, 0.01 * size / speed).min()
        rate_ahead = self._field((self.t + self.direction * h).to(self.y), self.y + self.direction * h * self.rate)
        curvature = _rms((rate_ahead - self.rate) / scale)[active] / h
        order = METHODS[self.loop.method]
        guess = float(torch.minimum(30 * h, (0.01 / torch.maximum(speed, curvature).max()) ** (1 / order)))
        fallback = 1e-6 * min(1.0, abs(self.end - self.t))  # where the field overflows a little ahead of the start
        return max(guess if guess > 0 else fallback, 2 * float(smallest_step(self.problem, self.t)))

    def norm(self, scaled: Tensor) -> Tensor:
        """The worst root mean square among active samples.

        Infinite, so that the step is rejected, where it is NaN or the state infinite, relative to which any error is 0.
        """
        norms, finite = _rms(scaled.detach()), max_norm(self.trial_y).isfinite()
        self.error_ratio = torch.where(finite & ~norms.isnan(), norms, torch.inf)
        return torch.where(self.active, self.error_ratio, 0.0).max()

    def callback_step(self, t: Tensor, y: Tensor, dt: Tensor) -> None:
        self.dt = float(dt)
        if self.dt < float(smallest_step(self.problem, self.t)):
            active, ratio = self.progress.active, on_host(self.error_ratio)
            failing = active & ~(ratio <= 1)
            self.progress.underflow(failing if failing.any() else active, ~np.isfinite(ratio))
            self.dt = None
            raise _SegmentEnd

    def callback_accept_step(self, t: Tensor, y: Tensor, dt: Tensor) -> None:
        # these methods evaluate their last stage at the end of the step, so the last trial state is the new state
        reached = self.t + self.direction * float(dt)
        if abs(reached - self.end) <= float(smallest_step(self.problem, self.end)):
            reached = self.end
        new = self.trial_y, self.trial_rate
        while self._to_save and self.direction * (self._to_save[0] - reached) < 0:
            time = self._to_save.pop(0)
            self.loop.advance(sub_step := _SubStep(self), self.t, self.y, time, abs(time - self.t))
            self.saved[time] = sub_step.y
        self.t, (self.y, self.rate) = reached, new
        if self._to_save and self._to_save[0] == reached:
            self.saved[self._to_save.pop(0)] = self.y
        self.steps.append((self.t, self.y))
        self._report(accepted=True)

    def callback_reject_step(self, t: Tensor, y: Tensor, dt: Tensor) -> None:
        self._report(accepted=False)

    def _report(self, accepted: bool) -> None:
        progress, before = self.progress, self.progress.active
        everywhere, ended = (np.full_like(before, flag) for flag in (accepted, self.t == self.end))
        progress.trial(everywhere, ended, self._take_calls(), *norms(self.y, self.rate))
        if not np.array_equal(progress.active, before):
            raise _SegmentEnd

    def _field(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        rate = self.problem.field(t, y, self.args)
        rate_of_state(rate, y)
        return rate

    def _take_calls(self) -> int:
        calls, self.calls = self.calls, 0
        return calls

    @staticmethod
    def _per_sample(flags: Tensor, like: Tensor) -> Tensor:
        return flags.view(-1, *[1] * (like.ndim - 1))


def _rms(y: Tensor) -> Tensor:
    """Root mean square of each sample, (batch,)."""
    return y.reshape(y.shape[0], -1).square().mean(1).sqrt()


class _SubStep:
    """The field for a shorter step to a time that is to be saved. `y` is the state where it ends.

    No callbacks and no errors: it is one step whatever comes of it, as the longer one was accepted.
    """

    def __init__(self, run: _Run) -> None:
        self._run = run
        self.y = run.y

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        self.y = y
        return self._run(t, y)

    @staticmethod
    def norm(scaled: Tensor) -> Tensor:
        return scaled.new_zeros(())
