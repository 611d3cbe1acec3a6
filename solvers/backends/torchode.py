"""torchode: Runge-Kutta steps whose size is controlled for each sample of a batch by itself.

Lienen & Guennemann, torchode: A parallel ODE solver for PyTorch, 2022, arXiv 2210.12375.

`AutoDiffAdjoint` runs the loop. It ends the whole batch when one sample fails, does not test for steady states, and
backpropagates through NaN. So its step method and its step size controller are wrapped: a sample that has stopped, for
whatever reason, gets steps of length zero until all have, and only then is torchode told to stop.
"""

from dataclasses import dataclass
from typing import Any

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
from solvers.tracing import on_host, refuse_vmap
from solvers.tree import tensors

METHODS = ("dopri5", "tsit5")
_SHRINK = 0.2  # factor for the step after a nonfinite trial: the smallest that torchode's controller takes by itself


@dataclass(frozen=True)
class TorchodeLoop(Loop):
    """One problem, integrated by torchode."""

    problem: Problem
    method: str
    rtol: float
    atol: float
    max_steps: int

    def run(self, y0: Tensor, args: Any) -> Solution:
        refuse_vmap("error control", [y0, *tensors(args)])
        return trivial_solution(self.problem, y0) if is_trivial(self.problem, y0) else self._integrate(y0, args)

    def _integrate(self, y0: Tensor, args: Any) -> Solution:
        import torchode  # takes longer to import than all of `solvers`; most users of fixed steps never need it

        flat = y0.reshape(y0.shape[0], -1)
        run = _Run(self.problem, flat, y0.shape, Bookkeeping(len(flat), self.problem.until, self.max_steps))
        method = {"dopri5": torchode.Dopri5, "tsit5": torchode.Tsit5}[self.method](term=None)
        controller = torchode.IntegralController(atol=self.atol, rtol=self.rtol).to(y0.device)
        adjoint = torchode.AutoDiffAdjoint(
            _Method(method, run), _Controller(controller, run), backprop_through_step_size_control=False
        )
        term = torchode.ODETerm(run.rate, with_stats=False, with_args=True)
        start, end = (flat.new_full(flat.shape[:1], t, dtype=torch.float64) for t in run.span)
        times = interior_times(self.problem)
        t_eval = torch.tensor(times, dtype=torch.float64, device=y0.device).expand(len(flat), -1) if times else None
        try:
            raw = adjoint.solve(torchode.InitialValueProblem(flat, start, end, t_eval), term, args=args)
        except _NothingToDo:
            raw, times = None, []
        return run.solution(y0, raw, times)


class _NothingToDo(Exception):
    """Every sample had stopped before the first step."""


class _Run:
    """One solve: the field as torchode sees it, and what has happened so far.

    Attributes:
        progress: which samples are active, statuses and counts.
        y: the current states, (batch, features).
        calls: evaluations of the field that `progress` does not count yet.
        last_rate: the field where it was evaluated last.
        nonfinite: samples whose last trial step gave infinities or NaN.
        steps: for `save_at="steps"`: times, states, and which samples reached them by an accepted step.
    """

    def __init__(self, problem: Problem, y0: Tensor, shape: torch.Size, progress: Bookkeeping) -> None:
        self.problem = problem
        self.shape = shape
        self.progress = progress
        self.span = (problem.t0, last_time(problem))
        self.direction = 1.0 if self.span[1] >= self.span[0] else -1.0
        self.y = y0
        self.calls = 0
        self.last_rate: Tensor | None = None
        self.nonfinite: Tensor | None = None
        self.steps: list[tuple[Tensor, Tensor, Tensor]] = []

    def rate(self, t: Tensor, y: Tensor, args: Any) -> Tensor:
        """The field as torchode sees it: times (batch,), states (batch, features)."""
        times = t.to(y.dtype).view(-1, *[1] * (len(self.shape) - 1))
        state = y.view(self.shape)
        rate = self.problem.field(times, state, args)
        rate_of_state(rate, state)
        refuse_vmap("error control", [rate])
        rate = rate.reshape(y.shape)
        self.calls += 1
        self.last_rate = rate.detach()
        return rate

    @property
    def active(self) -> Tensor:
        return torch.from_numpy(self.progress.active).to(self.y.device)

    def take_calls(self) -> int:
        calls, self.calls = self.calls, 0
        return calls

    def move(self, t: Tensor, y: Tensor, moved: Tensor) -> None:
        self.y = y
        if self.problem.save_at == "steps":
            self.steps.append((t, y, moved))

    def solution(self, y0: Tensor, raw: Any, times: list[float]) -> Solution:
        y1 = self.y.view(self.shape)
        if self.problem.save_at == "steps":
            ts, ys = self._packed_steps()
            return self.progress.solution(ts, ys.view(-1, *self.shape), y1)
        # torchode leaves times after a sample's end without a value
        states = {}
        for i, t in enumerate(times):
            reached = (raw.stats["n_initialized"] > i)[:, None]
            states[t] = torch.where(reached, raw.ys[:, i], self.y).view(self.shape)
        return solution(self.problem, self.progress, y0, y1, states)

    def _packed_steps(self) -> tuple[Tensor, Tensor]:
        """Times (saved, batch) and states (saved, batch, features), padded by each sample's last."""
        t, y, moved = (torch.stack(column) for column in zip(*self.steps, strict=True))
        count = moved.sum(0)
        order = torch.sort(moved.to(torch.int8), dim=0, descending=True, stable=True).indices[: int(count.max())]
        position = torch.arange(len(order), device=y.device)[:, None]
        order = torch.where(position < count, order, len(t) - 1)
        return t.gather(0, order).to(y.dtype), y.gather(0, order[..., None].expand(-1, -1, y.shape[-1]))


class _Method:
    """A torchode step method that keeps nonfinite trial steps out of the graph.

    A rejected step is masked, but the gradient through a mask is 0 times a Jacobian: NaN, for every tensor in `args`,
    if that Jacobian is not finite. Such a step is evaluated again with a length of zero for the samples concerned.
    """

    def __init__(self, method: Any, run: _Run) -> None:
        self._method = method
        self._run = run
        self.init = method.init
        self.merge_states = method.merge_states
        self.build_interpolation = method.build_interpolation
        self.convergence_order = method.convergence_order

    def step(
        self, term: Any, running: Tensor, y0: Tensor, t0: Tensor, dt: Tensor, state: Any, *, stats: Any, args: Any
    ) -> Any:
        out = self._method.step(term, running, y0, t0, dt, state, stats=stats, args=args)
        finite = out[0].y.isfinite().all(1) & out[0].error_estimate.isfinite().all(1)
        nonfinite = self._run.active & ~finite
        if torch.is_grad_enabled() and bool(nonfinite.any()):
            without = torch.where(nonfinite, 0.0, dt)
            out = self._method.step(term, running, y0, t0, without, state, stats=stats, args=args)
        self._run.nonfinite = nonfinite
        return out


class _Controller:
    """A torchode step size controller that reports every step and stops the loop when no sample is active."""

    def __init__(self, controller: Any, run: _Run) -> None:
        self._controller = controller
        self._run = run
        self.merge_states = controller.merge_states

    def init(
        self, term: Any, problem: Any, method_order: int, dt0: Tensor | None, *, stats: Any, args: Any
    ) -> tuple[Tensor, Any, Tensor]:
        dt, state, rate = self._controller.init(term, problem, method_order, dt0, stats=stats, args=args)
        run, progress = self._run, self._run.progress
        progress.begin(run.take_calls(), *norms(problem.y0, rate))
        run.move(problem.t_start, problem.y0, torch.ones_like(run.active))
        if progress.done:
            raise _NothingToDo
        dt = dt.detach()
        tiny = run.direction * 1e-6 * min(1.0, abs(run.span[1] - run.span[0]))
        dt = torch.where(dt.isfinite() & (dt != 0), dt, tiny)
        return torch.where(run.active, dt, 0.0), state, rate

    @torch.no_grad()
    def _adapt(
        self, t0: Tensor, dt: Tensor, y0: Tensor, result: Any, state: Any, stats: Any
    ) -> tuple[Tensor, Tensor, Any]:
        accept, dt_next, state, _ = self._controller.adapt_step_size(t0, dt, y0, result, state, stats)
        nonfinite = self._run.nonfinite
        assert nonfinite is not None
        dt_next = torch.where(nonfinite | ~dt_next.isfinite(), _SHRINK * dt, dt_next)
        return accept & ~nonfinite, dt_next.detach(), state  # forward mode does not heed no_grad

    def adapt_step_size(
        self, t0: Tensor, dt: Tensor, y0: Tensor, step_result: Any, state: Any, stats: Any
    ) -> tuple[Tensor, Tensor, Any, Tensor]:
        run, progress = self._run, self._run.progress
        accept, dt_next, state = self._adapt(t0, dt, y0, step_result, state, stats)
        t = t0 + dt
        assert run.last_rate is not None  # both methods end a step with the field at its end
        assert run.nonfinite is not None
        ended = on_host(run.direction * (t - run.span[1]) >= 0)
        moved_there = progress.trial(on_host(accept), ended, run.take_calls(), *norms(step_result.y, run.last_rate))
        too_small = on_host(dt_next.abs()) < smallest_step(run.problem, on_host(t0))
        progress.underflow(too_small, on_host(run.nonfinite))
        moved = torch.from_numpy(moved_there).to(t.device)
        t, y = torch.where(moved, t, t0), torch.where(moved[:, None], step_result.y, y0)
        run.move(t, y, moved)
        stop = torch.full(t.shape, int(progress.done), device=t.device)
        return moved, torch.where(run.active, dt_next, 0.0), state, stop
