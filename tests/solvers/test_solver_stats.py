"""Statistics are exact: compared with an instrumented field, sample by sample."""

import solver_cases as cases
import torch
from solver_problems import Counted

import solvers
from solvers import SteadyState

KEYS = {"num_steps", "num_accepted", "num_rejected", "num_field_evals", "residual"}


def check_against_calls(case: cases.SolverCase, solver: solvers.Solver, **options: object) -> None:
    """A batch's stats are those of its samples solved alone, whose evaluations are counted."""
    field, y0, args = case.problem(batch=3)
    y0 = y0 * torch.tensor([[1.0], [30.0], [1e-3]], dtype=y0.dtype)  # so that samples stop at different times
    with torch.no_grad():
        together = solvers.solve(field, y0, 4.0, solver, args, **options)  # type: ignore[arg-type]
        for i in range(3) if case.per_sample else ():
            counted = Counted(field)
            alone_args = {**args, "drive": args["drive"][i : i + 1]}
            alone = solvers.solve(counted, y0[i : i + 1], 4.0, solver, alone_args, **options)  # type: ignore[arg-type]
            assert alone.stats["num_field_evals"].tolist() == [counted.calls]
            for key in KEYS - {"residual"}:
                assert alone.stats[key].item() == together.stats[key][i].item(), key
    assert set(together.stats) == KEYS
    assert (together.stats["num_steps"] == together.stats["num_accepted"] + together.stats["num_rejected"]).all()
    for key in KEYS - {"residual"}:
        assert together.stats[key].dtype == torch.long
        assert together.stats[key].shape == (3,)


@cases.each(cases.SOLVERS)
def test_evaluations_are_counted(case: cases.SolverCase) -> None:
    check_against_calls(case, case.solver)


@cases.each(cases.SOLVERS)
def test_evaluations_are_counted_up_to_a_steady_state(case: cases.SolverCase) -> None:
    check_against_calls(case, case.solver, until=SteadyState(rtol=0, atol=1e-2))


@cases.each(cases.SOLVERS)
def test_evaluations_are_counted_when_states_are_saved(case: cases.SolverCase) -> None:
    for save_at in ("steps", torch.linspace(0, 4, 7), torch.tensor([0.1, 0.11, 3.99])):
        check_against_calls(case, case.solver, save_at=save_at)


@cases.each(cases.SOLVERS)
def test_evaluations_are_counted_when_states_are_saved_up_to_a_steady_state(case: cases.SolverCase) -> None:
    for save_at in ("steps", torch.linspace(0, 4, 7)):
        check_against_calls(case, case.solver, save_at=save_at, until=SteadyState(rtol=0, atol=1e-1))


@cases.each([case for case in cases.SOLVERS if case.limited])
def test_evaluations_are_counted_at_the_step_limit(case: cases.SolverCase) -> None:
    check_against_calls(case, case.limited, on_failure="nan")


@cases.each(cases.FIXED)
def test_fixed_steps_are_as_many_as_asked_for(case: cases.SolverCase) -> None:
    field, y0, args = case.problem()
    assert case.with_steps is not None
    solution = solvers.solve(field, y0, 1.0, case.with_steps(7), args)
    assert solution.stats["num_steps"].tolist() == [7, 7]
    assert solution.stats["num_rejected"].tolist() == [0, 0]
    assert solution.stats["num_field_evals"].tolist() == [7 * case.evals_per_step] * 2


@cases.each(cases.FIXED)
def test_dt_gives_the_steps_that_fit_and_a_last_shorter_one(case: cases.SolverCase) -> None:
    field, y0, args = case.problem()
    for dt, t1, expected in ((0.25, 1.0, 4), (0.1, 0.3, 3), (0.3, 1.0, 4), (5.0, 1.0, 1), (0.1, -0.7, 7)):
        solution = solvers.solve(field, y0, t1, solvers.get(case.name, dt=dt), args, save_at="steps")
        assert solution.stats["num_steps"].tolist() == [expected] * 2
        assert solution.ts[-1] == t1
    bare = solvers.solve(field, y0, 3.0, case.name, args)
    assert bare.stats["num_steps"].tolist() == [3, 3]


@cases.each(cases.SOLVERS)
def test_residual_is_the_size_of_the_rate_at_the_end(case: cases.SolverCase) -> None:
    field, y0, args = case.problem()
    solution = solvers.solve(field, y0, 60.0, case.accurate, args)
    assert (solution.stats["residual"] < 1e-5).all()
    assert solution.stats["residual"].shape == (2,)
    early = solvers.solve(field, y0, 50.0, case.accurate, args, until=SteadyState(rtol=0, atol=1e-3))
    residual = field(torch.tensor(0.0), early.y1, args).abs().amax(1)
    assert early.stats["residual"].allclose(residual, rtol=1e-10)
