"""`until=SteadyState(...)`: every sample stops by itself."""

import math

import pytest
import solver_cases as cases
import torch
from solver_problems import F64
from torch import Tensor

import solvers
from solvers import Status, SteadyState


class Decay:
    """y' = rate (args - y), rates by sample."""

    linear_rate = 1.0

    def __call__(self, t: Tensor, y: Tensor, args: Tensor) -> Tensor:
        return args - y


Y0 = torch.tensor([[1.0], [1e3], [0.0]], dtype=F64)
GOAL = torch.zeros(3, 1, dtype=F64)


def with_steps_of(case: cases.SolverCase, dt: float) -> solvers.Solver:
    return solvers.get(case.name, dt=dt) if case.kind == "fixed" else case.accurate


@cases.each(cases.FLOWS)
def test_each_sample_stops_by_itself(case: cases.SolverCase) -> None:
    solution = solvers.solve(Decay(), Y0, 100.0, with_steps_of(case, 0.1), GOAL, until=SteadyState(rtol=0, atol=1e-3))
    steps = solution.stats["num_steps"].tolist()
    assert (solution.status == Status.STEADY_STATE).all()
    assert steps[2] == 0
    assert steps[0] < steps[1] or not case.per_sample
    assert (solution.stats["residual"] <= 1e-3).all()
    if case.kind == "fixed":  # it stops at the first step that is good enough, not later
        assert (solution.stats["residual"][:2] > 0.8e-3).all()
        assert solution.stats["num_field_evals"].tolist() == [n * case.evals_per_step + 1 for n in steps]


@cases.each(cases.FLOWS)
def test_the_relative_tolerance_is_relative_to_the_sample(case: cases.SolverCase) -> None:
    goal = torch.tensor([[1.0], [1e4]], dtype=F64)
    solution = solvers.solve(
        Decay(), 0 * goal, 100.0, with_steps_of(case, 0.1), goal, until=SteadyState(rtol=1e-2, atol=0)
    )
    assert (solution.status == Status.STEADY_STATE).all()
    assert ((solution.y1 / goal - 1).abs() < 1.01e-2).all()
    if case.kind == "fixed":
        assert solution.stats["num_steps"][0] == solution.stats["num_steps"][1]


@cases.each(cases.FLOWS)
def test_the_end_may_come_first(case: cases.SolverCase) -> None:
    solution = solvers.solve(Decay(), Y0, 1.0, with_steps_of(case, 0.1), GOAL, until=SteadyState(rtol=0, atol=1e-9))
    assert solution.status.tolist() == [Status.SUCCESS, Status.SUCCESS, Status.STEADY_STATE]
    assert solution.success.all()
    plain = solvers.solve(Decay(), Y0, 1.0, with_steps_of(case, 0.1), GOAL)
    assert solution.y1.allclose(plain.y1, rtol=1e-6)


@cases.each(cases.FLOWS)
def test_open_ended_horizon(case: cases.SolverCase) -> None:
    rule = SteadyState(rtol=0, atol=1e-5)
    solution = solvers.solve(Decay(), Y0, math.inf, with_steps_of(case, 0.5), GOAL, until=rule)
    assert (solution.status == Status.STEADY_STATE).all()
    assert solution.y1.abs().max() < 1e-4


@cases.each(cases.FIXED)
def test_open_ended_horizon_has_a_step_limit(case: cases.SolverCase) -> None:
    rule = SteadyState(rtol=0, atol=1e-12, max_steps=5)
    solution = solvers.solve(Decay(), Y0, math.inf, with_steps_of(case, 1.0), GOAL + 2, until=rule, on_failure="nan")
    if case.name == "euler":  # dt = 1 solves this one at once
        assert (solution.status == Status.STEADY_STATE).all()
    else:
        assert solution.status.tolist() == [Status.MAX_STEPS_REACHED] * 3
        assert solution.stats["num_steps"].tolist() == [5] * 3
        assert solution.stats["num_field_evals"].tolist() == [5 * case.evals_per_step + 1] * 3


@cases.each(cases.RELAXATIONS)
def test_until_replaces_the_tolerance_of_a_relaxation(case: cases.SolverCase) -> None:
    field, y0, args = case.problem()
    loose = solvers.solve(field, y0, solver=case.accurate, args=args, until=SteadyState(rtol=0, atol=1e-2))
    tight = solvers.solve(field, y0, solver=case.accurate, args=args)
    assert (loose.stats["num_steps"] < tight.stats["num_steps"]).all()
    assert (loose.stats["residual"] <= 1e-2).all()


@cases.each(cases.RELAXATIONS)
def test_a_start_at_rest_takes_one_evaluation(case: cases.SolverCase) -> None:
    field, y0, args = case.problem()
    rest = solvers.solve(field, y0, solver=case.accurate, args=args).y1
    solution = solvers.solve(field, rest, solver=case.accurate, args=args, until=SteadyState(rtol=0, atol=1e-10))
    assert solution.y1.equal(rest)
    assert (solution.stats["num_steps"] == 0).all()
    assert (solution.stats["num_field_evals"] == 1).all()


@pytest.mark.parametrize("options", [{"rtol": 0, "atol": 0}, {"rtol": -1.0}, {"atol": math.nan}, {"max_steps": 0}])
def test_tolerances_are_checked(options: dict) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match=r"rtol|atol|max_steps"):
        SteadyState(**options)
