"""Relaxation with rtol = atol = 0: a given number of iterations, which is no failure."""

import warnings
from typing import Any

import pytest
import solver_cases as cases
import torch
from solver_problems import F64, Counted
from torch import Tensor

import solvers
from solvers import SolverError, Status, SteadyState


def given(case: cases.SolverCase, steps: int) -> solvers.Solver:
    return solvers.get(case.name, max_steps=steps, rtol=0, atol=0)


@pytest.mark.parametrize("on_failure", ["last", "raise", "nan"])
@cases.each(cases.RELAXATIONS)
def test_all_iterations_are_made_and_that_is_success(case: cases.SolverCase, on_failure: Any) -> None:
    field, y0, args = case.problem()
    counted = Counted(field)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        solution = solvers.solve(counted, y0, solver=given(case, 7), args=args, on_failure=on_failure, save_at="steps")
    assert (solution.status == Status.MAX_STEPS_REACHED).all()
    assert solution.success.all()
    assert solution.stats["num_steps"].tolist() == [7, 7]
    assert solution.stats["num_field_evals"].tolist() == [counted.calls] * 2
    assert len(solution.ys) == 8
    assert solution.y1.isfinite().all()
    assert "All the steps that were asked for were taken" in solution.describe()
    residual = field(torch.tensor(0.0), solution.y1, args).abs().amax(1)
    assert solution.stats["residual"].allclose(residual, rtol=1e-12)


@cases.each(cases.RELAXATIONS)
def test_the_iterates_are_those_of_a_solve_with_a_tolerance(case: cases.SolverCase) -> None:
    field, y0, args = case.problem()
    limited = solvers.get(case.name, max_steps=4, rtol=0, atol=1e-30)
    with pytest.warns(solvers.SolverWarning, match="MAX_STEPS_REACHED"):
        expected = solvers.solve(field, y0, solver=limited, args=args, save_at="steps")
    got = solvers.solve(field, y0, solver=given(case, 4), args=args, save_at="steps")
    assert got.ys.equal(expected.ys)
    assert not expected.success.any()


@cases.each(cases.RELAXATIONS)
def test_an_equilibrium_does_not_end_it(case: cases.SolverCase) -> None:
    def at_rest(t: Tensor, y: Tensor, args: Any) -> Tensor:
        return 0 * y

    at_rest.resolvent = lambda v, rho, args: v  # type: ignore[attr-defined]
    at_rest.prox = lambda v, step, args: v  # type: ignore[attr-defined]
    y0 = torch.ones(2, 3, dtype=F64)
    solution = solvers.solve(at_rest, y0, solver=given(case, 5))
    assert solution.stats["num_steps"].tolist() == [5, 5]
    assert solution.y1.allclose(y0)


@cases.each(cases.RELAXATIONS)
def test_until_brings_a_tolerance_back(case: cases.SolverCase) -> None:
    field, y0, args = case.problem()
    solution = solvers.solve(field, y0, solver=given(case, 500), args=args, until=SteadyState(rtol=0, atol=1e-4))
    assert (solution.status == Status.STEADY_STATE).all()
    assert (solution.stats["num_steps"] < 500).all()
    limited = solvers.solve(
        field, y0, solver=given(case, 1), args=args, until=SteadyState(rtol=0, atol=1e-9), on_failure="nan"
    )
    assert not limited.success.any()
    assert limited.y1.isnan().all()


def test_nonfinite_states_are_failures_all_the_same() -> None:
    def field(t: Tensor, y: Tensor, args: Any) -> Tensor:
        return y**2

    y0 = torch.tensor([[-0.5], [30.0]], dtype=F64)
    solver = solvers.FixedPoint(max_steps=40, rtol=0, atol=0)
    with pytest.raises(SolverError, match=r"1 of 2 samples failed"):
        solvers.solve(field, y0, solver=solver, on_failure="raise")
    solution = solvers.solve(field, y0, solver=solver, on_failure="nan")
    assert solution.status.tolist() == [Status.MAX_STEPS_REACHED, Status.NONFINITE]
    assert solution.success.tolist() == [True, False]
    assert solution.y1.isnan().tolist() == [[False], [True]]
    with pytest.warns(solvers.SolverWarning, match="NONFINITE"):
        solvers.solve(field, y0, solver=solver)


@pytest.mark.parametrize("adjoint", ["direct", "checkpointed", "implicit"])
@cases.each(cases.RELAXATIONS)
def test_gradients(case: cases.SolverCase, adjoint: str) -> None:
    field, y0, args = case.problem()
    args = {**args, "drive": args["drive"].clone().requires_grad_()}
    gradients = []
    for solver in (given(case, 300), case.accurate):
        solution = solvers.solve(field, y0, solver=solver, args=args, adjoint=adjoint)
        assert solution.success.all()
        gradients += torch.autograd.grad(solution.y1.square().sum(), args["drive"])
    assert gradients[0].allclose(gradients[1], rtol=1e-5, atol=1e-8)


def test_the_continuous_adjoint_is_still_refused() -> None:
    field, y0, args = cases.RELAXATIONS[0].problem()
    with pytest.raises(ValueError, match=r"known t1.*'implicit'"):
        solvers.solve(field, y0, solver=given(cases.RELAXATIONS[0], 3), args=args, adjoint="continuous")


@pytest.mark.parametrize("name", ["fixed_point", "nesterov"])
def test_a_given_number_of_iterations_traces(name: str) -> None:
    case = next(case for case in cases.RELAXATIONS if case.name == name)
    field, y0, args = case.problem()
    solver = given(case, 4)
    torch._dynamo.reset()

    def end(y0: Tensor) -> Tensor:
        return solvers.solve(field, y0, solver=solver, args=args).y1

    assert torch.compile(end, backend="eager", fullgraph=True)(y0).allclose(end(y0), rtol=1e-12)


def test_a_steady_state_without_a_tolerance_is_refused() -> None:
    with pytest.raises(ValueError, match=r"both 0.*give one of them, or .*to a relaxation solver"):
        SteadyState(rtol=0, atol=0)
