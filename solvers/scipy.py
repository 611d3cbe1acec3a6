"""SciPy's initial value solvers, the reference: among them implicit ones for stiff problems."""

import warnings
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solvers.adaptive import AdaptiveSolver
from solvers.bookkeeping import (
    Bookkeeping,
    check_horizon,
    interior_times,
    is_trivial,
    last_time,
    solution,
    trivial_solution,
)
from solvers.checks import one_of, positive_number, rate_of_state
from solvers.solution import Solution, Status
from solvers.solver import Loop, Problem
from solvers.tracing import refuse_transforms
from solvers.tree import tensors

METHODS = ("RK23", "RK45", "DOP853", "Radau", "BDF", "LSODA")
_WITH_JACOBIAN = ("Radau", "BDF", "LSODA")


@dataclass(frozen=True)
class Scipy(AdaptiveSolver):
    """The methods of `scipy.integrate.solve_ivp`, each sample of a batch integrated by itself.

    SciPy's arithmetic is float64 on the CPU. The field is evaluated in the type of the solve and on its device, so for
    a reference solve in float64. Since `args` may be laid out in any way, the field is evaluated on the whole batch
    where one sample moves: the cost grows with the square of the batch.

    SciPy's arithmetic cannot be backpropagated through: a solve that would have to be is refused. The adjoints
    'implicit' and 'continuous', which need only its result, work.

    `num_steps` counts accepted steps, as SciPy does not report the others; `num_field_evals` includes one evaluation
    per Jacobian. `save_at="steps"` returns times (saved, batch), padded with each sample's last.

    Args:
        method: "LSODA" (Petzold 1983, ODEPACK) detects by itself whether a problem is stiff. Otherwise "RK45", "RK23"
            or "DOP853" for problems that are not, "Radau" or "BDF" for those that are; their Jacobians are exact, by
            automatic differentiation.
        rtol, atol: relative and absolute tolerance. The defaults are those of a reference, not of a fast answer.
        max_steps: limit of accepted steps per sample.
    """

    method: str = "LSODA"
    _: KW_ONLY
    rtol: float = 1e-8
    atol: float = 1e-10

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("SciPy method", self.method, METHODS)
        positive_number("rtol", self.rtol)  # SciPy raises a zero to a value of its own

    def loop(self, problem: Problem) -> "ScipyLoop":
        check_horizon(self, problem)
        return ScipyLoop(problem, self)


@dataclass(frozen=True)
class ScipyLoop(Loop):
    """One problem, integrated by SciPy."""

    problem: Problem
    solver: Scipy

    def run(self, y0: Tensor, args: Any) -> Solution:
        problem = self.problem
        refuse_transforms("SciPy", [y0, *tensors(args)], "take a solver written in torch")
        checks = int(torch.is_grad_enabled())
        if checks:
            self._refuse_gradients(y0, args)
        if is_trivial(problem, y0):
            return trivial_solution(problem, y0)
        single, samples = [], []
        with torch.no_grad():
            for i in range(y0.shape[0]):
                sample = _Sample(self, y0, args, i)
                sample.integrate()
                single.append(sample.progress)
                samples.append(sample)
        progress = _merged(single)
        progress.num_field_evals += checks
        y1 = torch.stack([sample.tensor(sample.y) for sample in samples])
        if problem.save_at == "steps":
            ts, ys = _padded([sample.steps for sample in samples], y0)
            return progress.solution(ts, ys, y1)
        saved = {
            t: torch.stack([sample.tensor(sample.saved.get(t, sample.y)) for sample in samples])
            for t in interior_times(problem)
        }
        return solution(problem, progress, y0, y1, saved)

    def _refuse_gradients(self, y0: Tensor, args: Any) -> None:
        t0 = torch.tensor(self.problem.t0, dtype=y0.dtype, device=y0.device)
        rate = self.problem.field(t0, y0, args)
        rate_of_state(rate, y0)
        if y0.requires_grad or rate.requires_grad:
            raise ValueError(
                "a gradient would have to be taken through SciPy, whose arithmetic torch does not record: use "
                "adjoint='implicit' (of an equilibrium) or adjoint='continuous', solve under torch.no_grad(), or take "
                "a solver written in torch such as 'dopri5'"
            )


class _Sample:
    """Sample `index` of the batch while SciPy integrates it. States are float64 vectors (features,) here.

    Attributes:
        y: the last state.
        saved, steps: states by time, where asked for.
        progress: the bookkeeping of this sample alone.
    """

    def __init__(self, loop: ScipyLoop, y0: Tensor, args: Any, index: int) -> None:
        self.problem, self.solver = loop.problem, loop.solver
        self.batch, self.args, self.index = y0.clone(), args, index
        self.progress = Bookkeeping(1, self.problem.until, self.solver.max_steps)
        self.t = self.problem.t0
        self.y = y0[index].flatten().double().cpu().numpy()
        self.saved: dict[float, np.ndarray] = {}
        self.steps = [(self.t, self.y)]
        self.calls = 0
        self.seen_nonfinite = False
        self._known: tuple[float, np.ndarray, np.ndarray] | None = None

    def integrate(self) -> None:
        rate = self.rate(self.t, self.y)
        self.progress.begin(self._take_calls(), _size(self.y), _size(rate))
        if self.progress.done:
            return
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # LSODA warns where it fails; the status says it
            try:
                self._steps(self._stepper())
            except (ValueError, np.linalg.LinAlgError):  # Radau and BDF hand a Jacobian with NaN to LAPACK
                if not self.seen_nonfinite:
                    raise
                self._fail()

    def _stepper(self) -> Any:
        import scipy.integrate  # imported late, as it takes a second

        options: dict[str, Any] = {"rtol": self.solver.rtol, "atol": self.solver.atol}
        if self.solver.method in _WITH_JACOBIAN:
            options["jac"] = self.jacobian
        return getattr(scipy.integrate, self.solver.method)(
            self.rate, self.t, self.y, last_time(self.problem), **options
        )

    def _steps(self, stepper: Any) -> None:
        times = interior_times(self.problem)
        while not self.progress.done:
            stepper.step()
            if stepper.status == "failed" or not np.isfinite(stepper.y).all():
                return self._fail()
            while times and stepper.direction * (times[0] - stepper.t) <= 0:
                self.saved[times[0]] = stepper.dense_output()(times[0])
                del times[0]
            self.t, self.y = float(stepper.t), stepper.y.copy()
            self.steps.append((self.t, self.y))
            self._report(ended=stepper.status == "finished")

    def _report(self, ended: bool) -> None:
        last = ended or len(self.steps) > self.solver.max_steps
        rate = self.rate(self.t, self.y) if last or self.problem.until is not None else np.zeros(1)
        yes = np.ones(1, dtype=bool)
        self.progress.trial(yes, yes & ended, self._take_calls(), _size(self.y), _size(rate))

    def _fail(self) -> None:
        status = Status.NONFINITE if self.seen_nonfinite else Status.STEP_SIZE_TOO_SMALL
        rate = self.rate(self.t, self.y)
        self.progress.fail(status, _size(rate), self._take_calls())

    def rate(self, t: float, y: np.ndarray) -> np.ndarray:
        if self._known is not None and self._known[0] == t and np.array_equal(self._known[1], y):
            return self._known[2]
        rate = self._field(t, y)[self.index].flatten().double().cpu().numpy()
        self.seen_nonfinite = not np.isfinite(rate).all()
        self._known = (t, y.copy(), rate)
        return rate

    def jacobian(self, t: float, y: np.ndarray) -> np.ndarray:
        with torch.enable_grad():
            matrix = torch.autograd.functional.jacobian(
                lambda state: self._field(t, state)[self.index].flatten(), self.tensor(y).flatten()
            )
        self.seen_nonfinite = not bool(matrix.isfinite().all())
        return matrix.double().cpu().numpy()

    def _field(self, t: float, y: np.ndarray | Tensor) -> Tensor:
        self.calls += 1
        state = y if isinstance(y, Tensor) else self.tensor(y)
        indices = torch.arange(len(self.batch), device=state.device).view(-1, *[1] * (self.batch.ndim - 1))
        batch = torch.where(indices == self.index, state.view(self.batch.shape[1:]), self.batch)
        rate = self.problem.field(torch.tensor(t, dtype=batch.dtype, device=batch.device), batch, self.args)
        rate_of_state(rate, batch)
        return rate

    def tensor(self, y: np.ndarray) -> Tensor:
        """A state (features,) as a tensor of the solve, shaped as a sample."""
        return torch.as_tensor(y).to(self.batch).view(self.batch.shape[1:])

    def _take_calls(self) -> int:
        calls, self.calls = self.calls, 0
        return calls


def _size(y: np.ndarray) -> np.ndarray:
    """The largest magnitude of a state, as that of a batch of one."""
    return np.abs(y).max(keepdims=True)


def _merged(single: list[Bookkeeping]) -> Bookkeeping:
    """The bookkeeping of single samples as that of the batch."""
    merged = single[0]
    for name in ("status", "num_steps", "num_accepted", "num_field_evals", "residual"):
        setattr(merged, name, np.concatenate([getattr(progress, name) for progress in single]))
    return merged


def _padded(steps: list[list[tuple[float, np.ndarray]]], like: Tensor) -> tuple[Tensor, Tensor]:
    """Times (saved, batch) and states (saved, batch, ...), padded with each sample's last."""
    length = max(map(len, steps))
    full = [own + [own[-1]] * (length - len(own)) for own in steps]
    ts = np.array([[t for t, _ in own] for own in full]).T
    ys = np.array([[y for _, y in own] for own in full]).swapaxes(0, 1)
    return torch.as_tensor(ts).to(like), torch.as_tensor(ys).to(like).view(length, *like.shape)
