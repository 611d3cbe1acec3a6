"""`solve`: the one entry point."""

import itertools
import math
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from numbers import Real
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from solvers import adjoints, catalogue
from solvers.adjoints import Adjoint
from solvers.bookkeeping import OPEN_END, finite_or_failed
from solvers.checks import one_of
from solvers.field import Field
from solvers.solution import Solution, SolverError, SolverWarning, Status
from solvers.solver import Problem, Solver
from solvers.steady_state import SteadyState
from solvers.tracing import is_traced, values
from solvers.tree import cast_floating, tensors

OnFailure = Literal["last", "raise", "nan"]


def solve(
    field: Field,
    y0: Tensor,
    t1: float = math.inf,
    solver: str | Solver = "tsit5",
    args: Any = None,
    *,
    t0: float = 0.0,
    adjoint: str | Adjoint = "direct",
    save_at: Tensor | Sequence[float] | Literal["steps"] | None = None,
    until: SteadyState | None = None,
    on_failure: OnFailure = "last",
) -> Solution:
    """Integrate dy/dt = field(t, y, args) from y(t0) = y0 to t1.

    The arithmetic is done in the widest floating point type among `y0` and the tensors of `args`, in float32 at
    least, whatever the autocast state; the result has the type of `y0`.

    Args:
        field: the right-hand side; see `solvers.field`.
        y0: initial states, (batch, ...), floating point. Each y0[i] is a problem of its own.
        t1: the end; before t0 it integrates backwards. Relaxation solvers return the limit t1 -> inf whatever it is;
            others accept t1 = inf with `until` only.
        solver: a name out of `solvers.available()` or an object such as `RK4(num_steps=8)`. The default controls its
            error at rtol = 1e-4, atol = 1e-6. A bare fixed-step name takes the steps that the field names as its
            `natural_step`.
        args: passed on to the field: any nesting of tuples, dicts and tensors. Gradients reach every tensor in it.
        t0: the start.
        adjoint: how gradients get back: a name out of `solvers.adjoints.available()` or an object.
        save_at: None saves the end only, a 1-d tensor or sequence of times in the direction of integration these (a
            sequence also under torch.compile, where the values of tensors are unknown), "steps" every step from y0 on.
        until: stop each sample at its steady state.
        on_failure: for samples that fail (`Solution.success` is False), "last" returns the last state and warns once,
            "raise" raises a SolverError, "nan" fills them with NaN. The status tells in all cases.

    Returns:
        a `Solution`.

    Raises:
        ValueError: input that states no problem, or a combination that is not defined; the message says what is.
        SolverError: a sample failed and on_failure="raise".
    """
    solver = catalogue.get(solver)
    adjoint = adjoints.get(adjoint)
    one_of("on_failure", on_failure, get_args(OnFailure))
    if not callable(field):
        raise ValueError(f"field must be callable as field(t, y, args), got {type(field).__name__}")
    if until is not None and not isinstance(until, SteadyState):
        raise ValueError(f"until must be a SteadyState(rtol, atol) or None, got {until!r}")
    _check_state(y0)
    t0, t1 = _check_interval(t0, t1)
    problem = Problem(field, t0, t1, _check_save_at(save_at, t0, t1), until)

    dtype = _solve_dtype(y0, args)
    _check_range(problem, solver, dtype)
    with _without_autocast(y0.device.type):
        args = cast_floating(args, dtype)
        solution = _connected(adjoint.solve(solver.loop(problem), y0.to(dtype), args), field, args)
    return _handle_failure(_in_dtype(solution, y0.dtype), on_failure)


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _check_state(y0: Tensor) -> None:
    if not isinstance(y0, Tensor) or not y0.is_floating_point():
        got = f"dtype {y0.dtype}" if isinstance(y0, Tensor) else type(y0).__name__
        raise ValueError(f"y0 must be a floating point tensor, got {got}")
    if y0.ndim == 0:
        raise ValueError("y0 must be batched, (batch, ...), got a scalar; use y0[None] for a single problem")


def _check_interval(t0: float, t1: float) -> tuple[float, float]:
    for name, value in (("t0", t0), ("t1", t1)):
        if isinstance(value, bool) or not (
            isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1)
        ):
            raise ValueError(f"{name} must be a number, got {value!r}")
    t0, t1 = float(t0), float(t1)
    if not -math.inf < t0 < math.inf or t1 != t1:  # math's functions do not trace on the numbers of torch.compile
        raise ValueError(f"t0 must be finite and t1 a number, got t0={t0}, t1={t1}")
    return t0, t1


def _check_save_at(
    save_at: Tensor | Sequence[float] | Literal["steps"] | None, t0: float, t1: float
) -> tuple[float, ...] | Literal["steps"] | None:
    if save_at is None or isinstance(save_at, str):
        if save_at not in (None, "steps"):
            raise ValueError(f"save_at must be None, 'steps' or a 1-d tensor of times, got {save_at!r}")
        return save_at
    values = _as_numbers(save_at)
    direction = -1 if t1 < t0 else 1
    ordered = all(direction * a <= direction * b for a, b in itertools.pairwise(values))
    low, high = min(t0, t1), max(t0, t1)
    slack = 1e-6 * max(1.0, abs(t0), abs(t1)) if math.isfinite(t1) else 0.0  # float32 times of a float64 interval
    if not ordered or not all(low - slack <= value <= high + slack for value in values):
        raise ValueError(
            f"save_at must lie between t0={t0} and t1={t1}, in the direction of integration, got {_shorten(values)}"
        )
    return tuple(min(max(value, low), high) for value in values)


def _as_numbers(save_at: Any) -> tuple[float, ...]:
    if isinstance(save_at, Tensor):
        if save_at.ndim != 1:
            raise ValueError(f"save_at must be a 1-d tensor of times, got shape {tuple(save_at.shape)}")
        save_at = save_at.tolist()
    try:
        values = tuple(float(value) for value in save_at)
    except TypeError:
        raise ValueError(f"save_at must be None, 'steps' or a 1-d tensor of times, got {save_at!r}") from None
    if not values:
        raise ValueError("save_at must hold at least one time; None saves the end only")
    return values


def _shorten(values: tuple[float, ...], limit: int = 8) -> str:
    listed = ", ".join(f"{value:g}" for value in values[:limit])
    return f"({listed}{', ...' if len(values) > limit else ''})"


def _solve_dtype(y0: Tensor, args: Any) -> torch.dtype:
    dtype = torch.promote_types(y0.dtype, torch.float32)
    for leaf in tensors(args):
        if leaf.is_floating_point():
            dtype = torch.promote_types(dtype, leaf.dtype)
    return dtype


def _check_range(problem: Problem, solver: Solver, dtype: torch.dtype) -> None:
    """Whether the solve can count its time in `dtype`; relaxation solvers count iterations whatever t1 is."""
    t0, t1 = problem.t0, problem.t1
    ends = (t0,) if solver.reaches_equilibrium or abs(t1) == math.inf else (t0, t1, t1 - t0)
    saved = problem.save_at if isinstance(problem.save_at, tuple) else ()
    largest = torch.finfo(dtype).max
    if len(ends) == 1:  # error control lets OPEN_END stand for t1 = inf
        largest = min(largest, OPEN_END)
    if not all(abs(time) <= largest for time in (*ends, *saved)):
        raise ValueError(
            f"the interval from t0={t0:g} to t1={t1:g} is beyond what {dtype}, the type of this solve, can hold: "
            "rescale time, or for the limit t1 -> inf take a relaxation solver such as 'nesterov', or "
            "until=SteadyState(...) with t1=inf from a moderate t0"
        )


def _connected(solution: Solution, field: Field, args: Any) -> Solution:
    """Where no sample took a step the answer is y0 alone: all else gets the gradient zero, and not None."""
    if not torch.is_grad_enabled() or is_traced(solution.y1):
        return solution
    parameters = field.parameters() if isinstance(field, nn.Module) else ()
    leaves = [leaf for leaf in (*tensors(args), *parameters) if leaf.requires_grad]
    if not leaves:
        return solution
    if bool(values(solution.stats["num_steps"]).any()):
        return solution
    never = torch.zeros((), dtype=torch.bool, device=solution.y1.device)
    sums = ((leaf.real if leaf.is_complex() else leaf).sum().to(solution.y1) for leaf in leaves)
    nothing = torch.stack([torch.where(never, total, 0.0) for total in sums]).sum()  # also where a leaf is infinite
    return replace(solution, ys=solution.ys + nothing, y1=solution.y1 + nothing)


def _in_dtype(solution: Solution, dtype: torch.dtype) -> Solution:
    """The solution in the type of `y0`; samples with a state that this type cannot hold are not finite."""
    if solution.y1.dtype == dtype:
        return solution
    ys, y1 = solution.ys.to(dtype), solution.y1.to(dtype)
    return finite_or_failed(replace(solution, ys=ys, y1=y1))


def _handle_failure(solution: Solution, on_failure: OnFailure) -> Solution:
    if on_failure == "nan":  # no branch on values, so it traces
        bad = ~solution.success.view(-1, *[1] * (solution.y1.ndim - 1))
        ys, y1 = (torch.where(bad, float("nan"), states) for states in (solution.ys, solution.y1))
        return replace(solution, ys=ys, y1=y1)
    success = values(solution.success)
    if is_traced(success) or bool(success.all()):
        return solution
    known = replace(solution, status=values(solution.status))
    if on_failure == "raise":
        failed = int((~known.success).sum())
        raise SolverError(f"{failed} of {known.status.numel()} samples failed.\n{known.describe()}")
    worst = Status(int(known.status[~known.success].max()))
    warnings.warn(f"{worst.name}: {worst.advice}", SolverWarning, stacklevel=3)
    return solution
