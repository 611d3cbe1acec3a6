"""Whatever `solve` is given: a finite answer, a warning with a failing status, or a sentence."""

import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from outcomes import drawn, outcome
from torch import Tensor, nn

import solvers
from solvers import Solution, SteadyState


class _Relaxing:
    """y' = args - y, with all that a field may offer beside its value."""

    natural_step, linear_rate, contractive = 1.0, 1.0, True

    def __call__(self, t: Tensor, y: Tensor, args: Any) -> Tensor:
        return args - y

    def iterate(self, y: Tensor, args: Any) -> Tensor:
        return args + 0 * y

    def resolvent(self, v: Tensor, rho: float, args: Any) -> Tensor:
        return (args + rho * v) / (1 + rho)

    def prox(self, v: Tensor, step: float, args: Any) -> Tensor:
        return v


class _Module(nn.Module):
    natural_step = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.3))

    def forward(self, t: Tensor, y: Tensor, args: Any) -> Tensor:
        return (-self.scale.to(y.dtype) * y).sin()


class _WithStep:
    def __init__(self, step: Any) -> None:
        self.natural_step = step

    def __call__(self, t: Tensor, y: Tensor, args: Any) -> Tensor:
        return -y


FIELDS: dict[str, Any] = {
    "relaxing": _Relaxing(),
    "module": _Module(),
    "natural step": _WithStep(0.5),
    "growing": lambda t, y, args: y,
    "explosive": lambda t, y, args: y * y + 1,
    "stiff": lambda t, y, args: -1e6 * (y - t.cos()),
    "oscillating": lambda t, y, args: (1e4 * t).sin() + 0 * y,
    "resting": lambda t, y, args: torch.zeros_like(y),
    "constant": lambda t, y, args: torch.ones_like(y),
    "jumping": lambda t, y, args: torch.where(y > 0, -torch.ones_like(y), torch.ones_like(y)),
    "singular": lambda t, y, args: 1 / (1 - t) + 0 * y,
    "root": lambda t, y, args: y.sqrt(),
    "never finite": lambda t, y, args: y * math.nan,
    "infinite": lambda t, y, args: y + math.inf,
    "huge": lambda t, y, args: 1e38 * torch.ones_like(y),
    "first sample breaks": lambda t, y, args: torch.cat([y[:1] * math.inf, -y[1:]]),
}
NO_FIELDS: dict[str, Any] = {
    "another shape": lambda t, y, args: y.sum(),
    "one more axis": lambda t, y, args: y[None],
    "another type": lambda t, y, args: y.to(torch.float16),
    "complex": lambda t, y, args: y * 1j,
    "whole numbers": lambda t, y, args: y.to(torch.long),
    "a number": lambda t, y, args: 1.0,
    "nothing": lambda t, y, args: None,
    "a tuple": lambda t, y, args: (y,),
    "natural step 0": _WithStep(0.0),
    "natural step of text": _WithStep("one"),
    "no function": 3,
    "none": None,
}
FLOATS = st.sampled_from([torch.float32] * 4 + [torch.float64, torch.float16, torch.bfloat16])
SHAPES = st.sampled_from([(1,), (2,), (3, 2), (2, 3), (1, 1), (2, 1, 2), (0,), (2, 0), (0, 3)])
SCALES = st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1.0, 1.0, 100.0, 6e4, 1e20, 3e38])
SPECIAL = st.sampled_from([None] * 15 + [math.nan, math.inf, -math.inf])
LIMITS = st.sampled_from([1, 2, 7, 60])
OPTIONS = {
    "num_steps": LIMITS,
    "dt": st.sampled_from([0.1, 0.5, 1.0, 10.0, 1e30, 1e-30, "natural"]),
    "rtol": st.sampled_from([0.0, 1e-14, 1e-6, 1e-3, 0.1, 1e3]),
    "atol": st.sampled_from([0.0, 1e-14, 1e-6, 1e-3, 0.1, 1e3]),
    "max_steps": LIMITS,
    "memory": LIMITS,
    "regularisation": st.sampled_from([1e-5, 1e-300, 1e30]),
    "growth": st.sampled_from([1.0, 4.0, math.inf]),
    "rho": st.sampled_from([1.0, 1e-3, 1e6]),
    "relaxation": st.sampled_from([1.8, 1.0, 0.1]),
    "method": st.sampled_from(["LSODA", "RK23", "RK45", "DOP853", "Radau", "BDF"]),
    "backend": st.sampled_from([None, "native", "torchode", "torchdiffeq"]),
}
REFUSED: dict[str, list[Any]] = {  # arguments that state no problem
    "field": list(NO_FIELDS),
    "y0": [None, 1.0, [1.0], "y0", torch.tensor(1.0), torch.ones(2, dtype=torch.long), torch.ones(2, dtype=torch.bool)],
    "t1": ["5", torch.zeros(2), True, None, math.nan, 1j, [1.0]],
    "t0": ["0", math.inf, math.nan, None],
    "solver": [(name, {}) for name in ("rk5", "", None, 3)]
    + [("rk4", {"num_steps": n}) for n in (0, -1, 2.5, "many")]
    + [("euler", {"dt": dt}) for dt in (0.0, -0.1, math.nan, math.inf, "x")]
    + [("tsit5", {"rtol": r}) for r in (-1.0, math.nan, math.inf, "1e-3", True)]
    + [("anderson", {"growth": g}) for g in (0.5, math.nan, "x")]
    + [("anderson", {"regularisation": 0.0}), ("anderson", {"memory": 0}), ("douglas_rachford", {"rho": -1.0})]
    + [("scipy", {"method": "rk4"}), ("dopri5", {"backend": "jax"}), ("rk4", {"steps": 3})],
    "adjoint": ["backprop", None, 3],
    "save_at": ["all", [], torch.zeros(0), torch.zeros(2, 2), 3.0, [None], ["a"], [math.nan], True, [9e9], [2.0, 1.0]],
    "until": ["steady", 1e-3, (-1.0, 0.0, 1), (0.0, 0.0, 1), (1e-3, math.nan, 1), (1e-3, 1e-3, 0)],
    "on_failure": ["stop", None],
}


@st.composite
def states(draw: Any) -> Tensor:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    y0 = draw(SCALES) * torch.randn(draw(SHAPES), generator=generator)
    special = draw(SPECIAL)
    if special is not None and y0.numel():
        y0.view(-1)[0] = special
    return y0.to(draw(FLOATS))


@st.composite
def some_solvers(draw: Any) -> tuple[str, dict[str, Any]]:
    """A name, and some options of its class."""
    name = draw(st.sampled_from([*solvers.available(), "ista", "fista"]))
    known = vars(solvers.get(name))
    options = {option: draw(OPTIONS[option]) for option in OPTIONS if option in known and draw(st.integers(0, 3)) == 0}
    if {"num_steps", "dt"} <= options.keys():
        del options["dt"]
    if "max_steps" in known:
        options.setdefault("max_steps", 60)  # the default has its uses, but takes time where nothing converges
    elif "linear_rate" not in known and not options.keys() & {"num_steps", "dt"} and draw(st.integers(0, 3)):
        options["num_steps"] = draw(LIMITS)
    return name, options


@st.composite
def save_times(draw: Any, t0: float, t1: float) -> Any:
    """Mostly within the interval."""
    kind = draw(st.sampled_from(["none"] * 3 + ["steps", "list", "tensor"]))
    if kind in ("none", "steps"):
        return None if kind == "none" else kind
    length = t1 - t0 if math.isfinite(t1) else 2.0
    times = [t0 + length * part for part in sorted(draw(st.lists(st.floats(0, 1), min_size=1, max_size=4)))]
    return torch.tensor(times, dtype=torch.float64) if kind == "tensor" else times


ADJOINTS = st.sampled_from([*["direct"] * 16, *solvers.adjoints.available()])
EXTREMES = st.sampled_from([0, 1.0, 5, 1e-12, 1e-300, 50.0, 1e30, 1e39, 1e300, -1e300, math.inf, math.inf, -math.inf])
ARGS = st.sampled_from([0.5, torch.tensor(0.5), torch.tensor(0.5), torch.tensor(-3.0).double(), torch.tensor(3e38)])
RULES = st.sampled_from([None] * 4 + [(1e-3, 1e-3, 60), (0.0, 1e-9, 7), (1e9, 0.0, 1)])


@st.composite
def problems(draw: Any) -> dict[str, Any]:
    """The arguments of `solve`: all of them as they may be, extremes included; in one of eight one that may not."""
    t0 = draw(st.sampled_from([0.0] * 9 + [1.0, -2.0, 10.0, 1e30, -1e300]))
    t1 = draw(st.one_of(st.floats(0.01, 4).map(lambda length: t0 + length), st.floats(-3, 3), EXTREMES))
    problem = {
        "field": draw(st.sampled_from([*FIELDS, *["relaxing"] * 12, *["natural step", "module"] * 3])),
        "y0": draw(states()),
        "t1": t1,
        "t0": t0,
        "solver": draw(some_solvers()),
        "args": draw(ARGS),
        "adjoint": draw(ADJOINTS),
        "save_at": draw(save_times(t0, t1)),
        "until": draw(RULES),
        "on_failure": draw(st.sampled_from(["last"] * 6 + ["raise", "nan"])),
        "backward": draw(st.booleans()),
    }
    if draw(st.integers(0, 7)) == 0:
        name = draw(st.sampled_from(list(REFUSED)))
        problem[name] = draw(st.sampled_from(REFUSED[name]))
    return problem


def run(problem: dict[str, Any]) -> Solution:
    """Solve, and backpropagate where that is asked for."""
    problem = dict(problem)
    name, options = problem.pop("solver")
    problem["field"] = {**FIELDS, **NO_FIELDS}[problem["field"]]
    until, backward, y0 = problem.pop("until"), problem.pop("backward"), problem.pop("y0")
    if isinstance(until, tuple):
        until = SteadyState(*until)
    if isinstance(y0, Tensor):
        y0 = y0.clone().requires_grad_(backward and y0.is_floating_point())
    solution = solvers.solve(y0=y0, solver=solvers.get(name, **options), until=until, **problem)
    if backward:
        solution.ys.sum().backward()
    return solution


def check(problem: dict[str, Any], solution: Solution, warned: bool) -> None:
    """Success is finite and of the right shape; failure has been told of."""
    y0, save_at = problem["y0"], problem["save_at"]
    assert solution.y1.shape == y0.shape
    assert solution.y1.dtype == y0.dtype
    assert solution.ys.shape[1:] == y0.shape
    assert solution.status.shape == y0.shape[:1]
    if isinstance(save_at, list | Tensor):
        assert len(solution.ys) == len(save_at)
    success = solution.success
    for count in solution.stats.values():
        assert count.shape == success.shape
        assert (count >= 0)[success].all()
    finite = solution.y1.reshape(len(y0), -1).isfinite().all(1) if y0.numel() else torch.ones_like(success)
    saved = solution.ys.isfinite().reshape(*solution.ys.shape[:2], -1).all(2).all(0) if y0.numel() else finite
    assert (finite & saved)[success].all(), f"silent: {solution}"
    if problem["on_failure"] == "nan":
        assert solution.y1[~success].isnan().all()
    elif not success.all():
        assert warned, f"silent: {solution}"


def test_an_interval_too_short_for_the_type_has_a_residual() -> None:
    solution = solvers.solve(_Relaxing(), torch.zeros(2, 0), 1e-166, solvers.Heun(num_steps=1), 0.5)
    assert (solution.stats["residual"] == 0).all()


def test_scipy_does_not_call_success_what_only_float64_holds() -> None:
    y0 = torch.zeros(2, 1)
    with pytest.warns(solvers.SolverWarning, match="NONFINITE"):
        solution = solvers.solve(FIELDS["huge"], y0, 3.75, solvers.Scipy("RK23"))
    assert (solution.status == solvers.Status.NONFINITE).all()


def test_steps_behind_the_solve_that_break_are_told_of() -> None:
    y0 = torch.ones(2, requires_grad=True)
    rule = SteadyState(rtol=1e-3)
    with pytest.warns(solvers.SolverWarning, match="NONFINITE"):
        solution = solvers.solve(FIELDS["never finite"], y0, 0.0, "dopri5", adjoint="truncated", until=rule)
    assert (solution.status == solvers.Status.NONFINITE).all()


@pytest.mark.parametrize("growth", ["x", True, None])
def test_the_growth_of_anderson_is_a_number(growth: Any) -> None:
    with pytest.raises(ValueError, match="growth must be at least 1"):
        solvers.Anderson(growth=growth)


@pytest.mark.parametrize("adjoint", ["implicit", "truncated"])
def test_what_a_field_returns_is_checked_where_the_loop_asks_it_for_nothing(adjoint: str) -> None:
    y0 = torch.zeros(0, 2, requires_grad=True)
    with pytest.raises(ValueError, match="the field must return a tensor of y's shape"):
        solvers.solve(NO_FIELDS["a tuple"], y0, solver="fixed_point", adjoint=adjoint)


def test_a_gradient_that_an_adjoint_has_not_is_one_of_our_errors() -> None:
    y0 = torch.ones(2, requires_grad=True)
    solution = solvers.solve(_Relaxing(), y0, solver="nesterov", args=0.5, adjoint="implicit", save_at="steps")
    with pytest.raises(solvers.SolverError, match="differentiates the equilibrium `y1` alone"):
        solution.ys.sum().backward()


@drawn(1000)
@given(problem=problems())
def test_hostile_problems(problem: dict[str, Any]) -> None:
    solution, warned, refusal = outcome(lambda: run(problem))
    if refusal is None:
        check(problem, solution, warned)
