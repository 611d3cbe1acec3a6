"""The reference solver: agreement with SciPy called by hand, stiff problems, and the gradients it does not have."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from solver_problems import F64, Counted, Rational, pull
from torch import Tensor, nn

import solvers
from solvers import Scipy, Status, SteadyState
from solvers.scipy import METHODS

Y0 = torch.tensor([[0.5, 1.0], [1.5, 0.8]], dtype=F64)
STIFF = ("Radau", "BDF", "LSODA")
each_method = pytest.mark.parametrize("method", METHODS)


def robertson(t: Tensor, y: Tensor, args: Any) -> Tensor:
    """Robertson 1966: three reactions whose rates span nine orders of magnitude."""
    slow, fast, medium = 0.04 * y[:, 0], 3e7 * y[:, 1] ** 2, 1e4 * y[:, 1] * y[:, 2]
    return torch.stack([medium - slow, slow - medium - fast, fast], 1)


# the table in the documentation of CVODE's example cvRoberts_dns, to the digits that all its linear solvers agree on
ROBERTSON = {
    4e-1: (9.8517e-01, 3.3864e-05, 1.4794e-02),
    4e0: (9.0552e-01, 2.2404e-05, 9.4458e-02),
    4e1: (7.1582e-01, 9.1851e-06, 2.8417e-01),
    4e3: (1.8319e-01, 8.9423e-07, 8.1681e-01),
    4e5: (4.9383e-03, 1.9850e-08, 9.9506e-01),
    4e7: (5.2036e-05, 2.0815e-10, 9.9995e-01),
}


@pytest.mark.parametrize("method", STIFF)
def test_robertson(method: str) -> None:
    y0 = torch.tensor([[1.0, 0.0, 0.0]], dtype=F64)
    times = torch.tensor(list(ROBERTSON), dtype=F64)
    field = Counted(robertson)
    solution = solvers.solve(field, y0, times[-1], Scipy(method, rtol=1e-6, atol=1e-13), save_at=times)
    assert solution.success.all()
    expected = torch.tensor(list(ROBERTSON.values()), dtype=F64)
    assert solution.ys[:, 0].allclose(expected, rtol=1e-3, atol=0)
    assert solution.ys.sum(-1).allclose(torch.ones(1, dtype=F64), rtol=1e-6)
    assert solution.stats["num_field_evals"].tolist() == [field.calls]
    assert field.calls < 4000


@each_method
def test_the_numbers_are_those_of_solve_ivp(method: str) -> None:
    rate = lambda t, y: -2 * t * y**2  # noqa: E731
    jacobian = lambda t, y: np.diag(-4 * t * y)  # noqa: E731
    times = [0.0, 0.3, 1.7, 2.0]
    got = solvers.solve(Rational(), Y0, 2.0, Scipy(method), save_at=torch.tensor(times, dtype=F64))
    with torch.no_grad():
        plain = solvers.solve(Rational(), Y0, 2.0, Scipy(method))
    for i, start in enumerate(Y0.numpy()):
        extra = {"jac": jacobian} if method in STIFF else {}
        options = {"method": method, "rtol": 1e-8, "atol": 1e-10, **extra}
        by_hand = solve_ivp(rate, (0, 2), start, dense_output=True, **options)
        assert got.stats["num_accepted"][i] == len(by_hand.t) - 1
        assert np.allclose(got.ys[:, i].numpy().T, by_hand.sol(times), rtol=1e-11, atol=0)
        if method not in STIFF:  # a rate asked for twice in a row is evaluated once
            saved = solve_ivp(rate, (0, 2), start, **options).nfev - int(plain.stats["num_field_evals"][i])
            assert 0 <= saved <= 3
    assert (got.stats["num_rejected"] == 0).all()


def test_jacobians_are_exact() -> None:
    """Robertson in units that spoil finite differences is solved in about as many evaluations."""
    y0 = torch.tensor([[1.0, 0.0, 0.0]], dtype=F64)
    solver = Scipy("Radau", rtol=1e-6, atol=1e-12)
    small = 1e-9

    def scaled(t: Tensor, y: Tensor, args: Any) -> Tensor:
        return small * robertson(t, y / small, args)

    plain = solvers.solve(robertson, y0, 40.0, solver)
    shrunk = solvers.solve(scaled, small * y0, 40.0, solvers.get(solver, atol=1e-21))
    assert (shrunk.y1 / small).allclose(plain.y1, rtol=1e-5)
    ratio = float(shrunk.stats["num_field_evals"] / plain.stats["num_field_evals"])
    assert ratio == pytest.approx(1, abs=0.1)


@each_method
def test_samples_are_solved_one_by_one(method: str) -> None:
    field, y0, args = pull()
    solver = Scipy(method)
    with torch.no_grad():
        together = solvers.solve(field, torch.cat([y0[:1], 1000 * y0[1:]]), 3.0, solver, args)
        alone = solvers.solve(field, y0[:1], 3.0, solver, {**args, "drive": args["drive"][:1]})
    assert together.y1[0].allclose(alone.y1[0], rtol=1e-13)
    assert together.stats["num_steps"][0] == alone.stats["num_steps"][0]


@pytest.mark.filterwarnings("error")
@each_method
def test_failures_are_statuses(method: str) -> None:
    def pole(t: Tensor, y: Tensor, args: Any) -> Tensor:
        return y**2

    def domain(t: Tensor, y: Tensor, args: Tensor) -> Tensor:
        return (args - t).sqrt() + 0 * y

    y0 = torch.tensor([[1.0], [0.1]], dtype=F64)
    solver = Scipy(method, rtol=1e-6, atol=1e-8, max_steps=400)
    solution = solvers.solve(pole, y0, 2.0, solver, on_failure="nan")
    assert solution.status[0] in (Status.STEP_SIZE_TOO_SMALL, Status.MAX_STEPS_REACHED)
    assert solution.status[1] == Status.SUCCESS
    ends = torch.tensor([[1.0], [3.0]], dtype=F64)
    solution = solvers.solve(domain, y0, 2.0, solver, ends, on_failure="nan")
    assert solution.status.tolist() == [Status.NONFINITE, Status.SUCCESS]
    limited = solvers.solve(Rational(), Y0, 2.0, Scipy(method, max_steps=3), save_at="steps", on_failure="nan")
    assert limited.status.tolist() == [Status.MAX_STEPS_REACHED] * 2
    assert limited.stats["num_steps"].tolist() == [3, 3]


@each_method
def test_the_last_state_before_a_failure_lies_on_the_solution(method: str) -> None:
    solver = Scipy(method, max_steps=5)
    with pytest.warns(solvers.SolverWarning, match="MAX_STEPS_REACHED"):
        solution = solvers.solve(Rational(), Y0, 2.0, solver, save_at="steps")
    expected = 1 / (1 / Y0 + solution.ts[-1][:, None] ** 2)
    assert solution.y1.allclose(expected, rtol=1e-5)
    assert (solution.ts[-1] < 2).all()


@each_method
def test_each_sample_stops_on_an_open_horizon(method: str) -> None:
    rates = torch.tensor([[1.0], [0.1], [5.0]], dtype=F64)
    rule = SteadyState(rtol=0, atol=1e-4)
    solution = solvers.solve(
        lambda t, y, args: -args * y, torch.ones(3, 1, dtype=F64), math.inf, Scipy(method, rtol=1e-4), rates, until=rule
    )
    assert (solution.status == Status.STEADY_STATE).all()
    assert solution.stats["residual"].allclose((rates * solution.y1).abs()[:, 0])


def test_the_field_is_evaluated_in_the_type_of_the_solve() -> None:
    y0 = Y0.float()
    solution = solvers.solve(Rational(), y0, 2.0, Scipy(rtol=1e-6, atol=1e-7))
    assert solution.y1.dtype == torch.float32
    assert solution.y1.allclose(Rational.exact(2.0, y0), rtol=1e-4)


class Refusals:
    """Ways to ask for a gradient: name -> (field, y0, args)."""

    def __init__(self) -> None:
        field, y0, args = pull()
        frozen = pull()[0].requires_grad_(False)
        weight = nn.Parameter(torch.ones(2, dtype=F64))
        self.cases = {
            "y0": (Rational(), Y0.clone().requires_grad_(), None),
            "args": (frozen, y0, {**args, "drive": args["drive"].clone().requires_grad_()}),
            "parameters": (field, y0, args),
            "closure": (lambda t, y, args: -weight * y, Y0, None),
        }


@pytest.mark.parametrize("adjoint", ["direct", "checkpointed"])
@pytest.mark.parametrize("name", ["y0", "args", "parameters", "closure"])
def test_gradients_are_refused(name: str, adjoint: str) -> None:
    field, y0, args = Refusals().cases[name]
    with pytest.raises(ValueError, match=r"'continuous'|'direct' or 'continuous'"):
        solvers.solve(field, y0, 1.0, "scipy", args, adjoint=adjoint)
    with torch.no_grad():
        solution = solvers.solve(field, y0, 1.0, "scipy", args)
    assert solution.success.all()
    assert not solution.y1.requires_grad


def test_the_refusal_names_what_works() -> None:
    with pytest.raises(ValueError, match=r"adjoint='implicit'.*adjoint='continuous'.*no_grad.*'dopri5'"):
        solvers.solve(Rational(), Y0.clone().requires_grad_(), 1.0, "scipy")


@pytest.mark.parametrize("method", ["LSODA", "Radau"])
def test_the_continuous_adjoint_works(method: str) -> None:
    y0 = Y0.clone().requires_grad_()
    y1 = solvers.solve(Rational(), y0, 2.0, Scipy(method), adjoint=solvers.Continuous(rtol=1e-8, atol=1e-8)).y1
    (gradient,) = torch.autograd.grad(y1.sum(), y0)
    assert gradient.allclose(1 / (1 + 4 * y0.detach()) ** 2, rtol=1e-5)


def test_options_are_checked() -> None:
    with pytest.raises(
        ValueError, match=r"unknown SciPy method 'RK4' \(did you mean 'RK45'\?\); choose one of RK23, RK45"
    ):
        Scipy("RK4")
    with pytest.raises(ValueError, match="rtol must be"):
        Scipy(rtol=0)
    with pytest.raises(ValueError, match="Scipy cannot reach t1=inf"):
        solvers.solve(Rational(), Y0, math.inf, "scipy")
