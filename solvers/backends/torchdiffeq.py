"""torchdiffeq: Runge-Kutta steps of one size for the whole batch, controlled by its most demanding sample.

Chen, torchdiffeq, https://github.com/rtqichen/torchdiffeq; Chen et al. 2018, arXiv 1806.07366.

`odeint` ends in a bare assertion when the step becomes too small or a state is not finite, loses the states it had
reached by then, and knows no steady states. So it is run in legs, through its public callbacks: a leg ends where a
sample is done, or before the assertion would be met, and the next one begins with the states and the step size that
the last one had. The rate of samples that are done is zero from then on.

Its interpolation is of order 4 whatever the method, too little for dopri8. A state inside a step is found by a
shorter step of the same method from the same start.
"""

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solvers.backends.ledger import Ledger, inside, last_time, smallest_step, solution, unmoved
from solvers.checks import rate_of_state
from solvers.solution import Solution
from solvers.solver import Loop, Problem
from solvers.steady_state import max_norm

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
        return unmoved(self.problem, y0, per_sample=False) or self._integrate(y0, args)

    def _integrate(self, y0: Tensor, args: Any) -> Solution:
        problem = self.problem
        run = _Run(self, y0, args, Ledger(y0, problem.until, self.max_steps))
        while bool(run.ledger.going.any()):
            run.begin_leg()
            with contextlib.suppress(_LegOver):
                self.advance(run, run.t, run.y, run.end, run.first_step())
        if problem.save_at != "steps":
            saved = {t: run.shown(y) for t, y in run.saved.items()}
            return solution(problem, run.ledger, y0, run.shown(run.y), saved)
        times, states = zip(*run.steps, strict=True)
        ts = torch.tensor(times, dtype=y0.dtype, device=y0.device)
        ys = torch.stack([run.shown(y) for y in states])
        return Solution(ts, ys, ys[-1], run.ledger.status, run.ledger.stats())

    def advance(self, run: "_Run | _Aside", t: float, y: Tensor, end: float, first_step: float) -> None:
        """One call of `odeint`, whose last step ends at `end` exactly."""
        from torchdiffeq import odeint  # here for the sake of `import solvers`, as it takes a second

        times = torch.tensor([t, end], dtype=torch.float64, device=y.device)
        options = {"norm": run.norm, "first_step": first_step, "step_t": times[1:]}
        odeint(run, y, times, rtol=self.rtol, atol=self.atol, method=self.method, options=options)


class _LegOver(Exception):
    """A sample is done, so the rates change and the solve has to start afresh from the last state."""


class _Run:
    """The field as torchdiffeq sees it, with the callbacks by which torchdiffeq tells what it does.

    Attributes:
        t, y, rate: the last accepted state, (batch, ...), and the field there.
        trial_y, trial_rate: the same where the field was evaluated last.
        saved: states at the times asked for.
        dt: the step torchdiffeq would have liked to take next, positive; None if unknown.
    """

    def __init__(self, loop: TorchdiffeqLoop, y0: Tensor, args: Any, ledger: Ledger) -> None:
        problem = loop.problem
        self.loop = loop
        self.problem = problem
        self.args = args
        self.ledger = ledger
        self.end = last_time(problem)
        self.direction = 1.0 if self.end >= problem.t0 else -1.0
        self.saved: dict[float, Tensor] = {}
        self._to_save = inside(problem)
        self._y0, self._sound = y0, self._per_sample(max_norm(y0).isfinite(), y0)
        self.t, self.y = problem.t0, torch.where(self._sound, y0, 0.0)  # torchdiffeq takes no other states
        self.dt: float | None = None
        self.calls = 0
        self.rate = self._field(torch.tensor(problem.t0, dtype=y0.dtype, device=y0.device), self.y)
        ledger.begin(y0, self.rate, self._take_calls())
        self.error_ratio = torch.full_like(ledger.residual, torch.inf)
        self.steps = [(self.t, self.y)]

    def shown(self, y: Tensor) -> Tensor:
        """States as the caller is to see them: those that began as NaN still are."""
        return torch.where(self._sound, y, self._y0)

    def begin_leg(self) -> None:
        self.trial_y, self.trial_rate = self.y, self.rate

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        rate = self.rate if y is self.y else self._field(t, y)  # a leg begins where the last one knew the rate
        self.trial_y, self.trial_rate = y, rate
        return torch.where(self._per_sample(self.ledger.going, y), rate, 0.0)

    @torch.no_grad()
    def first_step(self) -> float:
        """Hairer, Norsett & Wanner, Solving ODEs I, II.4, by sample; the smallest, since all of them have to take it.

        torchdiffeq's own guess differs in a factor of 100 instead of 30, which is bound to hit h f'(y) = -1 on fast
        linear decay: there the error estimate of bosh3 is exactly zero.
        """
        if self.dt is not None:
            return self.dt
        going, scale = self.ledger.going, self.loop.atol + self.loop.rtol * self.y.abs()
        size, speed = _rms(self.y / scale)[going], _rms(self.rate / scale)[going]
        h = torch.where((size < 1e-5) | (speed < 1e-5), 1e-6, 0.01 * size / speed).min()
        ahead = self._field((self.t + self.direction * h).to(self.y), self.y + self.direction * h * self.rate)
        bend = _rms((ahead - self.rate) / scale)[going] / h
        order = METHODS[self.loop.method]
        guess = float(torch.minimum(30 * h, (0.01 / torch.maximum(speed, bend).max()) ** (1 / order)))
        fallback = 1e-6 * min(1.0, abs(self.end - self.t))  # the field a little ahead may have overflowed
        return max(guess if guess > 0 else fallback, 2 * float(smallest_step(self.problem, self.t)))

    def norm(self, scaled: Tensor) -> Tensor:
        """The worst root mean square among samples that are going; NaN counts as infinite, so a step can recover."""
        norms = _rms(scaled.detach())
        self.error_ratio = torch.where(norms.isnan(), torch.inf, norms)
        return torch.where(self.ledger.going, self.error_ratio, 0.0).max()

    def callback_step(self, t: Tensor, y: Tensor, dt: Tensor) -> None:
        self.dt = float(dt)
        if self.dt < float(smallest_step(self.problem, self.t)):
            going = self.ledger.going
            failing = going & ~(self.error_ratio <= 1)
            self.ledger.underflow(failing if bool(failing.any()) else going, ~self.error_ratio.isfinite())
            self.dt = None
            raise _LegOver

    def callback_accept_step(self, t: Tensor, y: Tensor, dt: Tensor) -> None:
        # the last stage of each of these methods is evaluated at the end of the step: there is the new state
        reached = self.t + self.direction * float(dt)
        if abs(reached - self.end) <= float(smallest_step(self.problem, self.end)):
            reached = self.end
        new = self.trial_y, self.trial_rate
        while self._to_save and self.direction * (self._to_save[0] - reached) < 0:
            time = self._to_save.pop(0)
            self.loop.advance(aside := _Aside(self), self.t, self.y, time, abs(time - self.t))
            self.saved[time] = aside.y
        self.t, (self.y, self.rate) = reached, new
        if self._to_save and self._to_save[0] == reached:
            self.saved[self._to_save.pop(0)] = self.y
        self.steps.append((self.t, self.y))
        self._report(accepted=True)

    def callback_reject_step(self, t: Tensor, y: Tensor, dt: Tensor) -> None:
        self._report(accepted=False)

    def _report(self, accepted: bool) -> None:
        ledger, before = self.ledger, self.ledger.going
        verdict = torch.full_like(before, accepted)
        ended = torch.full_like(before, self.t == self.end)
        ledger.trial(verdict, self.y, self.rate, ended, self._take_calls())
        if not bool((ledger.going == before).all()):
            raise _LegOver

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


class _Aside:
    """The field for a shorter step beside the solve: the same rates, no callbacks. `y` is where it ends."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self.norm = run.norm
        self.y = run.y

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        self.y = y
        return self._run(t, y)
