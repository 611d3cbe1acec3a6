"""What the conformance tables do not ask of solvers with error control: back ends, step sizes, trials that fail."""

import math
from typing import Any

import pytest
import torch
from solver_problems import F64, Linear, Rational, pull
from torch import Tensor

import solvers
from solvers import Status, SteadyState

NATIVE = {name: solvers.get(name) for name in ("dopri5", "tsit5", "bosh3", "dopri8")}
LIBRARIES = {
    "dopri5, torchode": solvers.Dopri5(backend="torchode"),
    "dopri5, torchdiffeq": solvers.Dopri5(backend="torchdiffeq"),
    "tsit5, torchode": solvers.Tsit5(backend="torchode"),
    "bosh3, torchdiffeq": solvers.Bosh3(backend="torchdiffeq"),
    "dopri8, torchdiffeq": solvers.Dopri8(backend="torchdiffeq"),
}
BACKENDS = {**NATIVE, **LIBRARIES}
PER_SAMPLE = [solver for name, solver in BACKENDS.items() if "torchdiffeq" not in name]
each_backend = pytest.mark.parametrize("solver", BACKENDS.values(), ids=BACKENDS)
Y0 = torch.tensor([[0.5, 1.0], [1.5, 0.8]], dtype=F64)


def decay(t: Tensor, y: Tensor, args: Tensor) -> Tensor:
    return -args * y


@pytest.mark.parametrize(
    ("name", "libraries"),
    [
        ("bosh3", ["torchdiffeq"]),
        ("dopri5", ["torchode", "torchdiffeq"]),
        ("tsit5", ["torchode"]),
        ("dopri8", ["torchdiffeq"]),
    ],
)
def test_back_ends_by_name(name: str, libraries: list[str]) -> None:
    kind = type(solvers.get(name))
    assert solvers.get(name) == solvers.get(name, backend="native") == solvers.get(name, backend=None)
    for backend in ("native", *libraries):
        solver = solvers.get(name, backend=backend)
        assert solvers.solve(Rational(), Y0, 2.0, solver).y1.allclose(Rational.exact(2.0, Y0), atol=1e-3)
    for backend in {"torchode", "torchdiffeq", "scipy"} - set(libraries):
        with pytest.raises(ValueError, match=f"unknown back end of {kind.__name__} '{backend}'.*one of native, "):
            solvers.get(name, backend=backend)


def test_a_tolerance_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="both 0"):
        solvers.Dopri5(rtol=0, atol=0)


@each_backend
def test_error_falls_with_the_tolerance(solver: Any) -> None:
    errors = []
    for tolerance in (1e-3, 1e-5, 1e-7, 1e-9):
        y1 = solvers.solve(Rational(), Y0, 2.0, solvers.get(solver, rtol=tolerance, atol=tolerance)).y1
        errors.append(float((y1 - Rational.exact(2.0, Y0)).abs().max()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-8


@each_backend
def test_states_at_times_are_as_good_as_the_end(solver: Any) -> None:
    times = torch.linspace(0, 2, 41, dtype=F64)
    for tolerance in (1e-4, 1e-8):
        ys = solvers.solve(Rational(), Y0, 2.0, solvers.get(solver, rtol=tolerance, atol=tolerance), save_at=times).ys
        exact = torch.stack([Rational.exact(float(t), Y0) for t in times])
        error = (ys - exact).abs().amax((1, 2))
        # Interpolation makes up to 16 of these 20; being no rounding, it is the same to eight digits on any processor.
        assert float(error.max()) < 20 * max(float(error[-1]), tolerance)


@each_backend
def test_a_badly_scaled_neighbour(solver: Any) -> None:
    field, y0, args = pull()
    neighbour = torch.cat([y0[:1], 1000 * y0[1:]])
    with torch.no_grad():
        alone = solvers.solve(field, y0[:1], 3.0, solver, {**args, "drive": args["drive"][:1]}).y1[0]
        beside = solvers.solve(field, neighbour, 3.0, solver, args).y1[0]
    moved = float((alone - beside).abs().max())
    if solver in PER_SAMPLE:
        assert moved < 1e-12
    else:  # one step size for both: within tolerance all the same
        assert moved < 10 * (solver.atol + solver.rtol * float(alone.abs().max()))


@pytest.mark.parametrize("solver", PER_SAMPLE, ids=str)
def test_steps_follow_each_sample(solver: Any) -> None:
    rates = torch.tensor([[1.0], [30.0], [500.0]], dtype=F64)
    solution = solvers.solve(decay, torch.ones(3, 1, dtype=F64), 2.0, solver, rates, save_at="steps")
    steps = solution.stats["num_accepted"]
    assert (steps[1:] > 2 * steps[:-1]).all()
    for i, count in enumerate(steps.tolist()):
        times = solution.ts[:, i]
        assert (times[: count + 1].diff() > 0).all()
        assert (times[count:] == 2.0).all()
        assert solution.ys[count:, i].equal(solution.y1[i].expand(len(times) - count, -1))
        assert solution.ys[:, i, 0].allclose((-rates[i] * times).exp(), rtol=0, atol=1e-4)


def test_one_step_size_for_the_batch_is_that_of_the_most_demanding_sample() -> None:
    rates = torch.tensor([[1.0], [30.0], [300.0]], dtype=F64)
    solver = solvers.Dopri5(backend="torchdiffeq")
    together = solvers.solve(decay, torch.ones(3, 1, dtype=F64), 2.0, solver, rates)
    hardest = solvers.solve(decay, torch.ones(1, 1, dtype=F64), 2.0, solver, rates[2:])
    steps = together.stats["num_steps"].tolist()
    assert steps[0] == steps[1] == steps[2]
    assert steps[0] == pytest.approx(int(hardest.stats["num_steps"]), rel=0.1)


def test_a_sample_hidden_in_a_large_batch_is_still_controlled() -> None:
    rates = torch.zeros(1000, 1, dtype=F64)
    rates[7] = 20.0
    solver = solvers.Dopri5(backend="torchdiffeq", rtol=1e-6, atol=1e-6)
    y1 = solvers.solve(decay, torch.ones(1000, 1, dtype=F64), 0.1, solver, rates).y1
    assert float(y1[7]) == pytest.approx(math.exp(-2.0), abs=1e-5)


@each_backend
def test_a_pole_is_a_step_that_becomes_too_small(solver: Any) -> None:
    def square(t: Tensor, y: Tensor, args: None) -> Tensor:
        return y**2

    y0 = torch.tensor([[1.0], [0.1]], dtype=F64)  # poles at t = 1 and t = 10
    with pytest.warns(solvers.SolverWarning, match="STEP_SIZE_TOO_SMALL"):
        solution = solvers.solve(square, y0, 2.0, solver, save_at=torch.tensor([0.5, 0.9, 1.5]))
    assert solution.status.tolist() == [Status.STEP_SIZE_TOO_SMALL, Status.SUCCESS]
    assert solution.ys[:2, 0, 0].allclose(torch.tensor([2.0, 10.0], dtype=F64), rtol=1e-2)
    assert float(solution.y1[0]) > 1e6
    assert solution.ys[2, 0].equal(solution.y1[0])
    assert float(solution.y1[1]) == pytest.approx(0.1 / (1 - 0.2), rel=1e-4)


@each_backend
def test_the_end_of_the_domain_is_not_a_number(solver: Any) -> None:
    def field(t: Tensor, y: Tensor, args: Tensor) -> Tensor:
        return (args - t).sqrt() + 0 * y

    ends = torch.tensor([[1.0], [3.0]], dtype=F64)
    solution = solvers.solve(field, torch.zeros(2, 1, dtype=F64), 2.0, solver, ends, on_failure="nan")
    assert solution.status.tolist() == [Status.NONFINITE, Status.SUCCESS]
    exact = 2 / 3 * (3**1.5 - 1)
    assert float(solution.y1[1]) == pytest.approx(exact, rel=1e-4)


@each_backend
def test_the_step_limit_returns_a_state_on_the_solution(solver: Any) -> None:
    limited = solvers.get(solver, rtol=1e-5, max_steps=4)
    solution = solvers.solve(decay, torch.ones(2, 1, dtype=F64), 50.0, limited, 1.0, on_failure="nan")
    assert solution.y1.isnan().all()
    with pytest.warns(solvers.SolverWarning, match="MAX_STEPS_REACHED"):
        solution = solvers.solve(decay, torch.ones(2, 1, dtype=F64), 50.0, limited, 1.0, save_at="steps")
    assert solution.stats["num_steps"].tolist() == [4, 4]
    t1 = solution.ts[-1].max()
    assert 0 < float(t1) < 50
    assert solution.y1.allclose((-t1).exp(), rtol=1e-4)


@each_backend
def test_a_trial_outside_the_domain_is_only_a_rejected_step(solver: Any) -> None:
    """y' = -k (y + 0 sqrt(y)): stages of steps near the limit of stability are negative, and their rates NaN."""
    seen = []

    def field(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
        rate = -k * (y + 0 * y.sqrt())
        seen.append(bool(rate.detach().isnan().any()))
        return rate

    k = torch.tensor(3.0, dtype=F64, requires_grad=True)
    y0 = torch.tensor([[1.0], [2.0]], dtype=F64, requires_grad=True)
    solution = solvers.solve(field, y0, 6.0, solvers.get(solver, rtol=1e-3, atol=1e-3), k)
    assert any(seen)
    assert solution.success.all()
    gradients = torch.autograd.grad(solution.y1.sum(), (y0, k))
    assert gradients[0].allclose(torch.zeros_like(y0), atol=2e-2)  # exp(-18)
    assert float(gradients[1]) == pytest.approx(0, abs=2e-2)


@each_backend
def test_a_failed_sample_leaves_gradients_alone(solver: Any) -> None:
    def field(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
        return torch.where(y < 0.5, math.nan, -k * y)

    k = torch.tensor(1.0, dtype=F64, requires_grad=True)
    y0 = torch.tensor([[1.0], [100.0]], dtype=F64)
    solution = solvers.solve(field, y0, 2.0, solver, k, on_failure="nan")
    assert solution.status.tolist() == [Status.NONFINITE, Status.SUCCESS]
    (gradient,) = torch.autograd.grad(solution.y1[1].sum(), k)
    assert float(gradient) == pytest.approx(-200 * math.exp(-2.0), rel=1e-3)


@each_backend
def test_gradients_of_a_linear_flow_are_exact_to_the_tolerance(solver: Any) -> None:
    y0, a = (part.requires_grad_() for part in Linear.problem())
    weights = torch.randn_like(y0)
    exact = torch.autograd.grad((weights * Linear.exact(2.0, y0, a)).sum(), (y0, a))
    tight = solvers.get(solver, rtol=1e-8, atol=1e-8)
    got = torch.autograd.grad((weights * solvers.solve(Linear(), y0, 2.0, tight, a).y1).sum(), (y0, a))
    for mine, theirs in zip(got, exact, strict=True):
        assert mine.allclose(theirs, rtol=0, atol=1e-5)


@each_backend
def test_second_derivatives(solver: Any) -> None:
    y0 = torch.tensor([[0.7]], dtype=F64, requires_grad=True)
    y1 = solvers.solve(Rational(), y0, 1.0, solvers.get(solver, rtol=1e-8, atol=1e-8)).y1
    (first,) = torch.autograd.grad(y1.sum(), y0, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), y0)
    assert float(first.detach()) == pytest.approx(1 / (1 + 0.7) ** 2, rel=1e-4)
    assert float(second) == pytest.approx(-2 / (1 + 0.7) ** 3, rel=1e-4)


@each_backend
def test_each_sample_stops_on_an_open_horizon(solver: Any) -> None:
    rates = torch.tensor([[1.0], [0.1], [5.0]], dtype=F64)
    rule = SteadyState(rtol=0, atol=1e-4)
    for t1 in (math.inf, 1e3):
        solution = solvers.solve(decay, torch.ones(3, 1, dtype=F64), t1, solver, rates, until=rule, save_at="steps")
        assert (solution.status == Status.STEADY_STATE).all()
        residual = (rates * solution.y1).abs()[:, 0]
        assert solution.stats["residual"].allclose(residual)
        if solver in PER_SAMPLE:
            assert solution.ts[-1, 2] < solution.ts[-1, 0] < solution.ts[-1, 1]


def test_an_open_horizon_runs_backwards_too() -> None:
    solution = solvers.solve(decay, Y0, -math.inf, solvers.Dopri5(), -1.0, until=SteadyState(rtol=0, atol=1e-4))
    assert (solution.status == Status.STEADY_STATE).all()
    assert solution.y1.abs().max() <= 1e-4


@each_backend
def test_an_open_horizon_needs_a_rule(solver: Any) -> None:
    with pytest.raises(ValueError, match=f"{type(solver).__name__} cannot reach t1=inf.*until"):
        solvers.solve(decay, Y0, math.inf, solver, 1.0)


@each_backend
def test_time_is_shaped_to_broadcast(solver: Any) -> None:
    def field(t: Tensor, y: Tensor, args: None) -> Tensor:
        assert t.dtype == y.dtype
        return t.cos() * torch.ones_like(y)

    y0 = torch.zeros(2, 3, 4, dtype=F64)
    y1 = solvers.solve(field, y0, 2.0, solver).y1
    assert y1.allclose(torch.full_like(y0, math.sin(2.0)), atol=1e-4)


@each_backend
def test_very_short_and_very_long_intervals(solver: Any) -> None:
    for scale in (1e-12, 1e-3, 1e3, 1e12):
        y1 = solvers.solve(decay, torch.ones(1, 1, dtype=F64), 2 * scale, solver, 0.9 / scale).y1
        assert float(y1) == pytest.approx(math.exp(-1.8), rel=1e-3)
