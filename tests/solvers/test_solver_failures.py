"""Solves that go wrong: statuses, and what `on_failure` does about them."""

import math
import warnings

import pytest
import solver_cases as cases
import torch
from torch import Tensor

import solvers
from solvers import SolverError, SolverWarning, Status

LIMITED = [case for case in cases.SOLVERS if case.limited]


def broken(case: cases.SolverCase) -> tuple:  # type: ignore[type-arg]
    field, y0, args = case.problem()
    return field, y0, {**args, "drive": args["drive"].index_fill(0, torch.tensor([1]), math.nan)}


@cases.each(cases.SOLVERS)
def test_nan_is_a_status_and_keeps_to_its_sample(case: cases.SolverCase) -> None:
    field, y0, args = broken(case)
    with pytest.warns(SolverWarning, match="NONFINITE"):
        solution = solvers.solve(field, y0, 2.0, case.solver, args)
    assert solution.success.tolist() == [True, False]
    assert solution.status[1] == Status.NONFINITE
    assert solution.y1[0].isfinite().all()


@cases.each(cases.SOLVERS)
def test_a_nan_start_is_a_status(case: cases.SolverCase) -> None:
    field, y0, args = case.problem()
    y0 = torch.cat([y0[:1], y0[1:].fill_(math.nan)])
    for t1 in (2.0, 0.0):
        solution = solvers.solve(field, y0, t1, case.solver, args, on_failure="nan")
        assert solution.status[1] == Status.NONFINITE
        assert solution.success[0]


@cases.each(cases.FIXED)
def test_overflow_is_a_status(case: cases.SolverCase) -> None:
    class Square:
        linear_rate = 1.0

        def __call__(self, t: Tensor, y: Tensor, args: None) -> Tensor:
            return y**2

    y0 = torch.tensor([[1e-3], [30.0]])
    for until in (None, solvers.SteadyState(rtol=0, atol=1e-9)):
        solution = solvers.solve(Square(), y0, 40.0, solvers.get(case.name, dt=1.0), until=until, on_failure="nan")
        assert solution.status.tolist() == [Status.SUCCESS, Status.NONFINITE]


def test_an_infinite_state_with_a_finite_rate_is_no_steady_state() -> None:
    def saturated(t: Tensor, y: Tensor, args: None) -> Tensor:
        return -torch.tanh(y)

    y0 = torch.tensor([[math.inf], [1.0]])
    for solver in (solvers.FixedPoint(), solvers.Euler(dt=1.0)):
        solution = solvers.solve(saturated, y0, 50.0, solver, until=solvers.SteadyState(max_steps=50), on_failure="nan")
        assert solution.status.tolist() == [Status.NONFINITE, Status.STEADY_STATE]


@cases.each(LIMITED)
def test_step_limit_is_a_status_and_returns_the_last_state(case: cases.SolverCase) -> None:
    field, y0, args = case.problem()
    with pytest.warns(SolverWarning, match="MAX_STEPS_REACHED.*raise max_steps") as record:
        solution = solvers.solve(field, y0, 50.0, case.limited, args)
    assert len(record) == 1
    assert record[0].filename == __file__
    assert (solution.status == Status.MAX_STEPS_REACHED).all()
    assert solution.y1.isfinite().all()


@cases.each(LIMITED)
def test_samples_that_are_done_stay_done_at_the_step_limit(case: cases.SolverCase) -> None:
    field, y0, args = case.problem()
    steady = solvers.solve(field, y0, 50.0, case.accurate, args).y1
    rule = solvers.SteadyState(rtol=0, atol=1e-4)
    y0 = torch.cat([steady[:1], y0[1:]])
    solution = solvers.solve(field, y0, 50.0, case.limited, args, until=rule, on_failure="nan")
    assert solution.status.tolist() == [Status.STEADY_STATE, Status.MAX_STEPS_REACHED]
    assert solution.y1[0].allclose(steady[0], atol=1e-3)
    assert solution.y1[1].isnan().all()


@cases.each(cases.SOLVERS)
def test_raise_names_the_count_and_the_advice(case: cases.SolverCase) -> None:
    field, y0, args = broken(case)
    with pytest.raises(SolverError, match=r"1 of 2 samples failed.\n.*NONFINITE: The state became"):
        solvers.solve(field, y0, 2.0, case.solver, args, on_failure="raise")


@cases.each(cases.SOLVERS)
def test_nan_fills_failed_samples_only(case: cases.SolverCase) -> None:
    field, y0, args = broken(case)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solution = solvers.solve(field, y0, 2.0, case.solver, args, on_failure="nan")
    assert solution.y1[1].isnan().all()
    assert solution.ys[:, 1].isnan().all()
    assert solution.y1[0].isfinite().all()


@cases.each(cases.SOLVERS)
def test_success_is_silent(case: cases.SolverCase) -> None:
    field, y0, args = case.problem()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solution = solvers.solve(field, y0, 2.0, case.solver, args, on_failure="raise")
    assert solution.success.all()
    assert "2 x S" in solution.describe()


def test_every_status_has_advice() -> None:
    for status in Status:
        assert status.advice.endswith(".")
    assert [status.ok for status in Status] == [True, True, False, False, False]


def test_describe_puts_the_most_frequent_outcome_first() -> None:
    status = torch.tensor([Status.SUCCESS, Status.NONFINITE, Status.NONFINITE])
    y = torch.zeros(3, 1)
    lines = solvers.Solution(torch.zeros(1), y[None], y, status, {}).describe().split("\n")
    assert lines[0].startswith("2 x NONFINITE")
    assert lines[1].startswith("1 x SUCCESS")
