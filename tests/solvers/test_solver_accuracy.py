"""Order of convergence, error control and limits, all in float64."""

from typing import Any

import pytest
import solver_cases as cases
import torch
from solver_problems import F64, Linear, Rational, slope
from torch import Tensor

import solvers

PROBLEMS = {
    "linear": (Linear(), *Linear.problem()),
    "rational": (Rational(), torch.tensor([[0.5, 1.0], [1.5, 0.8]], dtype=F64), None),
}
T1 = 2.0
each_problem = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)


def error(problem: tuple[Any, Tensor, Any], solver: solvers.Solver) -> float:
    field, y0, args = problem
    with torch.no_grad():
        solution = solvers.solve(field, y0, T1, solver, args)
    assert solution.y1.dtype == F64
    return float((solution.y1 - field.exact(T1, y0, args)).abs().max())


@each_problem
@cases.each([case for case in cases.SOLVERS if case.with_steps])
def test_order(case: cases.SolverCase, problem: Any) -> None:
    assert case.with_steps is not None
    errors = [error(problem, case.with_steps(n)) for n in case.steps]
    assert -slope(list(case.steps), errors) == pytest.approx(case.order, abs=0.15)


@each_problem
@cases.each(cases.FLOWS)
def test_accurate_setting(case: cases.SolverCase, problem: Any) -> None:
    assert error(problem, case.accurate) < case.accuracy


@each_problem
@cases.each([case for case in cases.FLOWS if case.with_tolerance])
def test_error_follows_the_tolerance(case: cases.SolverCase, problem: Any) -> None:
    assert case.with_tolerance is not None
    errors = [error(problem, case.with_tolerance(tolerance)) for tolerance in (1e-3, 1e-6, 1e-9)]
    assert errors[0] > errors[1] > errors[2]
    assert all(e < 100 * tolerance for e, tolerance in zip(errors, (1e-3, 1e-6, 1e-9), strict=True))


@cases.each(cases.RELAXATIONS)
def test_residual_follows_the_tolerance(case: cases.SolverCase) -> None:
    assert case.with_tolerance is not None
    field, y0, args = case.problem()
    for tolerance in (1e-3, 1e-6, 1e-9):
        solution = solvers.solve(field, y0, solver=case.with_tolerance(tolerance), args=args)
        residual = field(torch.tensor(0.0), solution.y1, args).flatten(1).abs().amax(1)
        assert (residual <= tolerance).all()
        assert solution.stats["residual"].allclose(residual, atol=1e-14)
        assert (solution.status == solvers.Status.STEADY_STATE).all()


@cases.each(cases.RELAXATIONS)
def test_limit_agrees_with_a_long_integration(case: cases.SolverCase) -> None:
    field, y0, args = case.problem()
    limit = solvers.solve(field, y0, solver=case.accurate, args=args).y1
    flow = solvers.solve(field, y0, 400.0, solvers.RK4(dt=0.5), args, until=solvers.SteadyState(rtol=0, atol=1e-12)).y1
    assert limit.allclose(flow, rtol=0, atol=10 * case.accuracy)


@cases.each(cases.RELAXATIONS)
def test_the_limit_does_not_depend_on_t1(case: cases.SolverCase) -> None:
    field, y0, args = case.problem()
    ends = [solvers.solve(field, y0, t1, case.solver, args).y1 for t1 in (0.0, 1.0, float("inf"))]
    assert ends[0].equal(ends[1])
    assert ends[0].equal(ends[2])


def test_exponential_euler_is_exact_on_pure_decay_and_euler_with_a_shorter_step() -> None:
    y0 = torch.randn(2, 3, dtype=F64)

    class Decay:
        linear_rate = 1.0

        def __call__(self, t: Tensor, y: Tensor, args: Tensor) -> Tensor:
            return args - y

    drive = torch.randn(2, 3, dtype=F64)
    got = solvers.solve(Decay(), y0, 3.0, solvers.ExponentialEuler(dt=1.0), drive).y1
    assert got.allclose(drive + (y0 - drive) * torch.tensor(-3.0, dtype=F64).exp(), rtol=1e-13)
    step = 1 - torch.tensor(-1.0, dtype=F64).exp().item()
    assert got.allclose(solvers.solve(Decay(), y0, 3 * step, solvers.Euler(num_steps=3), drive).y1, rtol=1e-13)


def test_euler_with_unit_steps_is_fixed_point_iteration() -> None:
    field, y0, args = cases.RELAXATIONS[0].problem()
    rule = solvers.SteadyState(rtol=0, atol=1e-10)
    euler = solvers.solve(field, y0, 500.0, "euler", args, until=rule)
    iteration = solvers.solve(field, y0, solver=solvers.FixedPoint(rtol=0, atol=1e-10), args=args)
    assert euler.y1.equal(iteration.y1)
    assert euler.stats["num_steps"].equal(iteration.stats["num_steps"])
