"""Error-controlled solvers on the DETEST set, against SciPy's DOP853 at a tight tolerance, outside of this library."""

import functools
from typing import Any

import numpy as np
import pytest
import torch
from detest import END, F64, PROBLEMS, Problem
from scipy.integrate import solve_ivp

import solvers

TOLERANCE = {"bosh3": 1e-4, "dopri5": 1e-6, "tsit5": 1e-6, "dopri8": 1e-8, "scipy": 1e-8}
# Of the end state, in units of the tolerance per step: the orbits of class D add up to 2000. That is an error of the
# methods and not rounding: another order of summation moves it in the tenth digit.
ERROR = 3000


@functools.cache
def reference(problem: Problem) -> torch.Tensor:
    def rate(x: float, y: Any) -> Any:
        return problem(torch.tensor(x, dtype=F64), torch.as_tensor(y)[None])[0].numpy()

    start = np.array(problem.start)
    solution = solve_ivp(rate, (0, END), start, method="DOP853", rtol=1e-12, atol=1e-14)
    assert solution.success
    return torch.as_tensor(solution.y[:, -1])


@pytest.mark.parametrize("name", TOLERANCE)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_end_state(problem: Problem, name: str) -> None:
    tolerance = TOLERANCE[name]
    solver = solvers.get(name, rtol=tolerance, atol=tolerance)
    with torch.no_grad():
        solution = solvers.solve(problem, problem.y0, END, solver, on_failure="raise")
    expected = reference(problem)
    error = (solution.y1[0] - expected).abs() / expected.abs().clamp_min(1)
    assert float(error.max()) < ERROR * tolerance


@pytest.mark.parametrize("problem", [p for p in PROBLEMS if p.name in ("A3", "B4", "C1", "E3")], ids=str)
def test_there_and_back_again(problem: Problem) -> None:
    solver = solvers.Dopri5(rtol=1e-8, atol=1e-8)
    with torch.no_grad():
        middle = solvers.solve(problem, problem.y0, 2.0, solver).y1
        back = solvers.solve(problem, middle, 0.0, solver, t0=2.0).y1
    assert back.allclose(problem.y0, rtol=0, atol=1e-4)


def test_orbits_of_any_eccentricity_in_one_batch() -> None:
    orbits = [p for p in PROBLEMS if p.name.startswith("D")]
    y0 = torch.cat([p.y0 for p in orbits])
    solver = solvers.Dopri5(rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        together = solvers.solve(orbits[0], y0, END, solver)
        for i, orbit in enumerate(orbits):
            alone = solvers.solve(orbit, orbit.y0, END, solver)
            assert together.y1[i].allclose(alone.y1[0], rtol=1e-9)
            assert together.stats["num_steps"][i] == alone.stats["num_steps"][0]
    steps = together.stats["num_steps"]
    assert (steps.diff() > 0).all()  # the narrower an orbit, the more steps
