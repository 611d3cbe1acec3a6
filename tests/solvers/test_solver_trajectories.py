"""Saved states: the end, every step, or any times, against exact solutions."""

import math
from typing import Any

import pytest
import solver_cases as cases
import torch
from solver_problems import F64, Linear, Rational, slope
from torch import Tensor

import solvers

Y0 = torch.tensor([[0.5, 1.0], [1.5, 0.8]], dtype=F64)
TIMES = {
    "uniform": torch.linspace(0, 2, 9, dtype=F64),
    "non-uniform, both ends": torch.tensor([0.0, 0.013, 0.5, 0.51, math.sqrt(2), 1.9999, 2.0], dtype=F64),
    "inside only": torch.tensor([0.3, 1.7], dtype=F64),
    "one": torch.tensor([1.234], dtype=F64),
    "start only": torch.tensor([0.0], dtype=F64),
    "end only": torch.tensor([2.0], dtype=F64),
    "repeated": torch.tensor([0.0, 0.0, 0.7, 0.7, 2.0, 2.0], dtype=F64),
    "float32": torch.linspace(0, 2, 6),
}


def exact_states(times: Tensor, y0: Tensor) -> Tensor:
    return torch.stack([Rational.exact(float(t), y0) for t in times])


@cases.each(cases.SOLVERS)
def test_only_the_end_by_default(case: cases.SolverCase) -> None:
    field, y0, args = case.problem()
    solution = solvers.solve(field, y0, 2.0, case.solver, args)
    assert solution.ts.shape == (1,)
    assert solution.ys.shape == (1, *y0.shape)
    assert solution.ys[0].equal(solution.y1)
    if case.kind != "relaxation":
        assert solution.ts[0] == 2.0


@cases.each(cases.SOLVERS)
def test_steps_run_from_start_to_end(case: cases.SolverCase) -> None:
    field, y0, args = case.problem()
    solution = solvers.solve(field, y0, 2.0, case.solver, args, save_at="steps")
    plain = solvers.solve(field, y0, 2.0, case.solver, args)
    assert solution.ys[0].equal(y0)
    assert solution.ys[-1].equal(solution.y1)
    assert solution.y1.allclose(plain.y1, rtol=1e-13, atol=1e-15)
    assert len(solution.ts) == len(solution.ys) == solution.stats["num_accepted"].max() + 1
    assert (solution.ts[0] == 0.0).all()
    assert (solution.ts.diff(dim=0) >= 0).all()
    if case.kind != "relaxation":
        assert (solution.ts[-1] == 2.0).all()


@cases.each(cases.FLOWS)
def test_every_step_lies_on_the_solution(case: cases.SolverCase) -> None:
    solution = solvers.solve(Rational(), Y0, 2.0, case.accurate, save_at="steps")
    ts = solution.ts if solution.ts.ndim == 2 else solution.ts[:, None].expand(-1, 2)
    expected = 1 / (1 / Y0 + ts[..., None] ** 2)
    assert solution.ys.allclose(expected, rtol=0, atol=case.accuracy)


@pytest.mark.parametrize("times", TIMES.values(), ids=TIMES)
@cases.each(cases.FLOWS)
def test_states_at_given_times(case: cases.SolverCase, times: Tensor) -> None:
    solution = solvers.solve(Rational(), Y0, 2.0, case.accurate, save_at=times)
    assert solution.ts.allclose(times.to(F64))
    assert solution.ys.shape == (len(times), *Y0.shape)
    assert solution.ys.allclose(exact_states(times, Y0), rtol=0, atol=case.accuracy)
    assert solution.y1.allclose(Rational.exact(2.0, Y0), rtol=0, atol=case.accuracy)
    if times[0] == 0:
        assert solution.ys[0].equal(Y0)
    if times[-1] == 2:
        assert solution.ys[-1].allclose(solution.y1, rtol=1e-12, atol=0)


@cases.each(cases.FLOWS)
def test_reversed_time(case: cases.SolverCase) -> None:
    start = Rational.exact(2.0, Y0)
    times = torch.tensor([2.0, 1.7, 0.9, 0.0], dtype=F64)
    solution = solvers.solve(Rational(), start, 0.0, case.accurate, t0=2.0, save_at=times)
    assert solution.ys.allclose(exact_states(times, Y0), rtol=0, atol=20 * case.accuracy)
    assert solution.ys[0].equal(start)
    steps = solvers.solve(Rational(), start, 0.0, case.accurate, t0=2.0, save_at="steps")
    assert (steps.ts[0] == 2.0).all()
    assert (steps.ts[-1] == 0.0).all()
    assert (steps.ts.diff(dim=0) <= 0).all()


@cases.each(cases.FLOWS)
def test_negative_times(case: cases.SolverCase) -> None:
    times = torch.tensor([-1.0, -0.3, 1.0], dtype=F64)
    start = Rational.exact(-1.0, Y0)
    solution = solvers.solve(Rational(), start, 1.0, case.accurate, t0=-1.0, save_at=times)
    assert solution.ys.allclose(exact_states(times, Y0), rtol=0, atol=20 * case.accuracy)


@cases.each(cases.FLOWS)
def test_no_time_at_all(case: cases.SolverCase) -> None:
    for save_at in (None, "steps", torch.tensor([0.7]), torch.tensor([0.7, 0.7])):
        solution = solvers.solve(Rational(), Y0, 0.7, case.solver, t0=0.7, save_at=save_at)
        assert solution.y1.equal(Y0)
        assert solution.ys.equal(Y0.expand(len(solution.ts), -1, -1))
        assert solution.ts.allclose(torch.tensor(0.7, dtype=F64))
        assert len(solution.ts) == (2 if isinstance(save_at, Tensor) and len(save_at) == 2 else 1)
        assert (solution.stats["num_steps"] == 0).all()
        assert (solution.status == solvers.Status.SUCCESS).all()


@cases.each(cases.FIXED)
def test_interpolation_keeps_the_order(case: cases.SolverCase) -> None:
    y0, a = Linear.problem()
    times = torch.tensor([0.123, 0.777, 1.456, 1.987], dtype=F64)
    expected = torch.stack([Linear.exact(float(t), y0, a) for t in times])
    errors = []
    for n in case.steps:
        assert case.with_steps is not None
        solution = solvers.solve(Linear(), y0, 2.0, case.with_steps(n), a, save_at=times)
        errors.append(float((solution.ys - expected).norm()))
    assert case.order is not None
    assert -slope(list(case.steps), errors) > case.order - 0.25  # where in its step a time lies varies with n


@cases.each(cases.FLOWS)
def test_saving_does_not_move_the_end(case: cases.SolverCase) -> None:
    plain = solvers.solve(Rational(), Y0, 2.0, case.solver).y1
    saved = solvers.solve(Rational(), Y0, 2.0, case.solver, save_at=TIMES["non-uniform, both ends"]).y1
    assert saved.allclose(plain, rtol=1e-12 if case.per_sample else 1e-3, atol=0)


@cases.each(cases.FLOWS)
def test_times_after_a_steady_state_hold_the_last_state(case: cases.SolverCase) -> None:
    field, y0, args = case.problem()
    rule = solvers.SteadyState(rtol=0, atol=1e-2)
    times = torch.tensor([0.0, 1.0, 40.0, 50.0], dtype=F64)
    solver: Any = solvers.get(case.name, dt=0.1) if case.kind == "fixed" else case.accurate
    solution = solvers.solve(field, y0, 50.0, solver, args, save_at=times, until=rule)
    assert (solution.status == solvers.Status.STEADY_STATE).all()
    assert solution.ys[0].equal(y0)
    assert solution.ys[2].equal(solution.ys[3])
    assert solution.ys[3].equal(solution.y1)


@cases.each(cases.RELAXATIONS)
def test_times_of_a_relaxation_count_iterations(case: cases.SolverCase) -> None:
    field, y0, args = case.problem()
    steps = solvers.solve(field, y0, solver=case.solver, args=args, save_at="steps")
    at = solvers.solve(field, y0, solver=case.solver, args=args, save_at=torch.tensor([0.0, 3.0, 3.5, 1e3], dtype=F64))
    assert steps.ts.equal(torch.arange(len(steps.ts), dtype=F64))
    assert at.ys[0].equal(y0)
    assert at.ys[1].equal(steps.ys[3])
    assert at.ys[2].allclose((steps.ys[3] + steps.ys[4]) / 2, rtol=1e-13)
    assert at.ys[3].equal(at.y1)
    assert at.y1.equal(steps.y1)


def test_a_relaxation_does_not_run_backwards() -> None:
    field, y0, args = cases.RELAXATIONS[0].problem()
    for t1 in (-1.0, -math.inf):
        with pytest.raises(ValueError, match="looks for the limit t1 -> inf"):
            solvers.solve(field, y0, t1, "fixed_point", args)


@pytest.mark.filterwarnings("ignore::solvers.SolverWarning")
@cases.each(cases.FIXED)
def test_a_sample_that_breaks_keeps_its_last_finite_state_under_a_stopping_rule(case: cases.SolverCase) -> None:
    class Bomb:
        linear_rate = 1.0

        def __call__(self, t: Tensor, y: Tensor, args: None) -> Tensor:
            return torch.where(y[:, :1] < 0.5, math.nan, -y)

    y0 = torch.tensor([[1.0], [100.0]], dtype=F64)
    times = torch.linspace(0, 2, 9, dtype=F64)
    rule = solvers.SteadyState(rtol=0, atol=1e-9)
    solution = solvers.solve(Bomb(), y0, 2.0, solvers.get(case.name, dt=0.21), save_at=times, until=rule)
    assert solution.status.tolist() == [solvers.Status.NONFINITE, solvers.Status.SUCCESS]
    assert solution.y1.isfinite().all() or case.evals_per_step > 1
    assert solution.ys[:, 1].isfinite().all()
    assert solution.ys[0].equal(y0)
