"""Every registered solver and adjoint stands in the conformance tables."""

import solver_cases as cases

import solvers


def test_every_solver_has_a_row() -> None:
    assert sorted(case.name for case in cases.SOLVERS) == sorted(solvers.available())


def test_every_adjoint_has_a_row() -> None:
    assert sorted(case.name for case in cases.ADJOINTS) == sorted(solvers.adjoints.available())


@cases.each(cases.SOLVERS)
def test_rows_build_what_they_are_named_after(case: cases.SolverCase) -> None:
    registered = type(solvers.get(case.name))
    assert all(type(solver) is registered for solver in (case.solver, case.accurate))
    assert set(case.adjoints) <= set(solvers.adjoints.available())


@cases.each(cases.ADJOINTS)
def test_adjoint_rows_build_what_they_are_named_after(case: cases.AdjointCase) -> None:
    assert type(case.adjoint) is type(solvers.adjoints.get(case.name))
