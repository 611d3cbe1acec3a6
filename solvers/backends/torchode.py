"""torchode: Runge-Kutta steps whose size is controlled for each sample of a batch by itself.

Lienen & Guennemann, torchode: A parallel ODE solver for PyTorch, 2022, arXiv 2210.12375.

`AutoDiffAdjoint` runs the loop. It ends the whole batch when one sample fails, knows no steady states and follows NaN
into the graph. So its step method and its step size controller are wrapped: a sample that is done, one way or the
other, gets steps of length zero until all are, and only then is torchode told to stop.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solvers.backends.ledger import Ledger, inside, last_time, smallest_step, solution, unmoved
from solvers.checks import rate_of_state
from solvers.solution import Solution
from solvers.solver import Loop, Problem

METHODS = ("dopri5", "tsit5")
_SHRINK = 0.2  # after a trial without finite numbers: the most that torchode's controller shrinks by on its own


@dataclass(frozen=True)
class TorchodeLoop(Loop):
    """One problem, integrated by torchode."""

    problem: Problem
    method: str
    rtol: float
    atol: float
    max_steps: int

    def run(self, y0: Tensor, args: Any) -> Solution:
        return unmoved(self.problem, y0, per_sample=True) or self._integrate(y0, args)

    def _integrate(self, y0: Tensor, args: Any) -> Solution:
        import torchode  # takes longer to import than all of `solvers`; most users of fixed steps never need it

        flat = y0.reshape(y0.shape[0], -1)
        watched = _Watched(self.problem, y0.shape, Ledger(flat, self.problem.until, self.max_steps))
        method = {"dopri5": torchode.Dopri5, "tsit5": torchode.Tsit5}[self.method](term=None)
        controller = torchode.IntegralController(atol=self.atol, rtol=self.rtol).to(y0.device)
        adjoint = torchode.AutoDiffAdjoint(
            _Method(method, watched), _Controller(controller, watched), backprop_through_step_size_control=False
        )
        term = torchode.ODETerm(watched.rate, with_stats=False, with_args=True)
        start, end = (flat.new_full(flat.shape[:1], t, dtype=torch.float64) for t in watched.span)
        times = inside(self.problem)
        t_eval = torch.tensor(times, dtype=torch.float64, device=y0.device).expand(len(flat), -1) if times else None
        try:
            raw = adjoint.solve(torchode.InitialValueProblem(flat, start, end, t_eval), term, args=args)
        except _NothingToDo:
            raw, times = None, []
        return watched.solution(y0, raw, times)


class _NothingToDo(Exception):
    """Every sample was done before the first step."""


class _Watched:
    """What happens during one solve. `y` holds the current states, (batch, features)."""

    def __init__(self, problem: Problem, shape: torch.Size, ledger: Ledger) -> None:
        self.problem = problem
        self.shape = shape
        self.ledger = ledger
        self.span = (problem.t0, last_time(problem))
        self.direction = 1.0 if self.span[1] >= self.span[0] else -1.0
        self.y = torch.empty(0)
        self.calls = 0
        self.last_rate: Tensor | None = None
        self.blown: Tensor | None = None
        self.steps: list[tuple[Tensor, Tensor, Tensor]] = []  # time, state, whether this is a new one

    def rate(self, t: Tensor, y: Tensor, args: Any) -> Tensor:
        """The field as torchode sees it: times (batch,), states (batch, features)."""
        times = t.to(y.dtype).view(-1, *[1] * (len(self.shape) - 1))
        state = y.view(self.shape)
        rate = self.problem.field(times, state, args)
        rate_of_state(rate, state)
        rate = rate.reshape(y.shape)
        self.calls += 1
        self.last_rate = rate.detach()
        return rate

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
            return Solution(ts, ys.view(-1, *self.shape), y1, self.ledger.status, self.ledger.stats())
        # torchode leaves times behind a sample's end without a value
        states = {}
        for i, t in enumerate(times):
            reached = (raw.stats["n_initialized"] > i)[:, None]
            states[t] = torch.where(reached, raw.ys[:, i], self.y).view(self.shape)
        return solution(self.problem, self.ledger, y0, y1, states)

    def _packed_steps(self) -> tuple[Tensor, Tensor]:
        """Times (saved, batch) and states (saved, batch, features), padded by each sample's last."""
        t, y, moved = (torch.stack(column) for column in zip(*self.steps, strict=True))
        count = moved.sum(0)
        order = torch.sort(moved.to(torch.int8), dim=0, descending=True, stable=True).indices[: int(count.max())]
        position = torch.arange(len(order), device=y.device)[:, None]
        order = torch.where(position < count, order, len(t) - 1)
        return t.gather(0, order).to(y.dtype), y.gather(0, order[..., None].expand(-1, -1, y.shape[-1]))


class _Method:
    """A torchode step method that keeps trials which blow up out of the graph.

    A rejected step is masked away, but the gradient of what is masked is 0 times a Jacobian: NaN, for every tensor in
    `args`, if that Jacobian is not finite. Such a step is evaluated again without the samples that blew up.
    """

    def __init__(self, method: Any, watched: _Watched) -> None:
        self._method = method
        self._watched = watched
        self.init = method.init
        self.merge_states = method.merge_states
        self.build_interpolation = method.build_interpolation
        self.convergence_order = method.convergence_order

    def step(
        self, term: Any, running: Tensor, y0: Tensor, t0: Tensor, dt: Tensor, state: Any, *, stats: Any, args: Any
    ) -> Any:
        out = self._method.step(term, running, y0, t0, dt, state, stats=stats, args=args)
        finite = out[0].y.isfinite().all(1) & out[0].error_estimate.isfinite().all(1)
        blown = self._watched.ledger.going & ~finite
        if torch.is_grad_enabled() and bool(blown.any()):
            without = torch.where(blown, 0.0, dt)
            out = self._method.step(term, running, y0, t0, without, state, stats=stats, args=args)
        self._watched.blown = blown
        return out


class _Controller:
    """A torchode step size controller that reports to the ledger and stops the loop when no sample is going."""

    def __init__(self, controller: Any, watched: _Watched) -> None:
        self._controller = controller
        self._watched = watched
        self.merge_states = controller.merge_states

    def init(
        self, term: Any, problem: Any, method_order: int, dt0: Tensor | None, *, stats: Any, args: Any
    ) -> tuple[Tensor, Any, Tensor]:
        dt, state, rate = self._controller.init(term, problem, method_order, dt0, stats=stats, args=args)
        watched, ledger = self._watched, self._watched.ledger
        ledger.begin(problem.y0, rate, watched.take_calls())
        watched.move(problem.t_start, problem.y0, torch.ones_like(ledger.going))
        if not bool(ledger.going.any()):
            raise _NothingToDo
        dt = dt.detach()
        tiny = watched.direction * 1e-6 * min(1.0, abs(watched.span[1] - watched.span[0]))
        dt = torch.where(dt.isfinite() & (dt != 0), dt, tiny)
        return torch.where(ledger.going, dt, 0.0), state, rate

    @torch.no_grad()
    def _adapt(
        self, t0: Tensor, dt: Tensor, y0: Tensor, result: Any, state: Any, stats: Any
    ) -> tuple[Tensor, Tensor, Any]:
        accept, dt_next, state, _ = self._controller.adapt_step_size(t0, dt, y0, result, state, stats)
        blown = self._watched.blown
        assert blown is not None
        return accept & ~blown, torch.where(blown | ~dt_next.isfinite(), _SHRINK * dt, dt_next), state

    def adapt_step_size(
        self, t0: Tensor, dt: Tensor, y0: Tensor, step_result: Any, state: Any, stats: Any
    ) -> tuple[Tensor, Tensor, Any, Tensor]:
        watched, ledger = self._watched, self._watched.ledger
        accept, dt_next, state = self._adapt(t0, dt, y0, step_result, state, stats)
        t = t0 + dt
        ended = watched.direction * (t - watched.span[1]) >= 0
        assert watched.last_rate is not None  # both methods end a step with the field at its end
        assert watched.blown is not None
        moved = ledger.trial(accept, step_result.y, watched.last_rate, ended, watched.take_calls())
        ledger.underflow(dt_next.abs() < smallest_step(watched.problem, t0), watched.blown)
        t, y = torch.where(moved, t, t0), torch.where(moved[:, None], step_result.y, y0)
        watched.move(t, y, moved)
        stop = torch.zeros_like(ledger.status) if bool(ledger.going.any()) else torch.ones_like(ledger.status)
        return moved, torch.where(ledger.going, dt_next, 0.0), state, stop
