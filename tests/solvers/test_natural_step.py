"""What is done where no step is given: error control by default, and the field's own step for fixed-step solvers."""

import inspect
import math
from typing import Any

import pytest
import solver_cases as cases
import torch
from solver_problems import F64, Counted, Pull
from torch import Tensor, nn

import solvers


class Decay:
    """y' = -y, with a step of its own."""

    linear_rate = 1.0

    def __init__(self, natural_step: Any) -> None:
        self.natural_step = natural_step

    def __call__(self, t: Tensor, y: Tensor, args: Any) -> Tensor:
        return -y


def decay(t: Tensor, y: Tensor, args: Any) -> Tensor:
    return -y


Y0 = torch.ones(2, 3, dtype=F64)


def test_the_default_solver_controls_its_error() -> None:
    solution = solvers.solve(decay, Y0, t1=1.0)
    assert solution.y1.allclose(torch.full_like(Y0, math.exp(-1)), rtol=0, atol=1e-3)
    assert inspect.signature(solvers.solve).parameters["solver"].default == "tsit5"
    assert solution.y1.equal(solvers.solve(decay, Y0, 1.0, solvers.Tsit5(rtol=1e-4, atol=1e-6)).y1)
    assert not solution.y1.equal(solvers.solve(decay, Y0, 1.0, solvers.Tsit5(rtol=1e-5)).y1)


@pytest.mark.parametrize("cls", [solvers.Bosh3, solvers.Dopri5, solvers.Tsit5, solvers.Dopri8])
def test_default_tolerances(cls: Any) -> None:
    assert (cls().rtol, cls().atol) == (1e-4, 1e-6)


@pytest.mark.parametrize("step", [0.25, 1, 2.0])
@cases.each(cases.FIXED)
def test_a_bare_name_takes_the_natural_step(case: cases.SolverCase, step: float) -> None:
    bare = solvers.solve(Decay(step), Y0, 3.0, case.name)
    assert bare.y1.equal(solvers.solve(Decay(None), Y0, 3.0, solvers.get(case.name, dt=float(step))).y1)
    assert bare.stats["num_steps"].tolist() == [math.ceil(3.0 / step)] * 2
    back = solvers.solve(Decay(step), Y0, -3.0, case.name)
    assert back.stats["num_steps"].equal(bare.stats["num_steps"])


@cases.each(cases.FIXED)
def test_what_is_given_goes_before_the_natural_step(case: cases.SolverCase) -> None:
    for options, steps in (({"num_steps": 7}, 7), ({"dt": 0.5}, 6)):
        solution = solvers.solve(Decay(1.0), Y0, 3.0, solvers.get(case.name, **options))
        assert solution.stats["num_steps"].tolist() == [steps] * 2


@cases.each(cases.FIXED)
def test_an_open_horizon_takes_the_natural_step(case: cases.SolverCase) -> None:
    rule = solvers.SteadyState(rtol=0, atol=1e-3)
    bare = solvers.solve(Decay(0.25), Y0, math.inf, case.name, until=rule)
    given = solvers.solve(Decay(None), Y0, math.inf, solvers.get(case.name, dt=0.25), until=rule)
    assert (bare.status == solvers.Status.STEADY_STATE).all()
    assert bare.stats["num_steps"].equal(given.stats["num_steps"])


@pytest.mark.parametrize("horizon", [{"t1": 3.0}, {"t1": math.inf, "until": solvers.SteadyState()}], ids=["3", "inf"])
@cases.each(cases.FIXED)
def test_a_field_without_a_step_is_told_what_to_give(case: cases.SolverCase, horizon: dict[str, Any]) -> None:
    name = type(case.solver).__name__
    message = rf"{name} was given neither num_steps nor dt.*\(Decay\).*num_steps=.*dt=.*`natural_step`.*'tsit5'"
    with pytest.raises(ValueError, match=message):
        solvers.solve(Decay(None), Y0, solver=case.name, **horizon)


@pytest.mark.parametrize("step", [0.0, -1.0, math.nan, math.inf, True, "1", torch.ones(())])
def test_a_step_that_is_none_is_refused(step: Any) -> None:
    with pytest.raises(ValueError, match="the field's natural_step must be a finite number above 0"):
        solvers.solve(Decay(step), Y0, 1.0, "euler")


def test_an_empty_interval_needs_no_step() -> None:
    assert solvers.solve(decay, Y0, 0.0, "euler").y1.equal(Y0)


def test_a_wrapped_field_keeps_its_step() -> None:
    counted = Counted(Decay(0.5))
    assert solvers.solve(counted, Y0, 2.0, "euler").stats["num_field_evals"].tolist() == [4, 4] == [counted.calls] * 2


def test_a_natural_step_traces() -> None:
    class Module(nn.Module):
        natural_step = 0.5

        def forward(self, t: Tensor, y: Tensor, args: Any) -> Tensor:
            return -y

    module = Module()
    torch._dynamo.reset()
    compiled = torch.compile(lambda y: solvers.solve(module, y, 2.0, "heun").y1, backend="eager", fullgraph=True)
    assert compiled(Y0).allclose(solvers.solve(module, Y0, 2.0, solvers.Heun(num_steps=4)).y1, rtol=1e-12)


def test_the_length_of_a_step_can_be_asked_for() -> None:
    assert solvers.Euler().step_length(Pull()) == 1.0
    assert solvers.Euler(dt=0.1).step_length(Pull()) == 0.1


def test_other_horizons_at_the_same_step() -> None:
    assert solvers.RK4(num_steps=4).with_step_of(2.0) == solvers.RK4(dt=0.5)
    assert solvers.RK4(num_steps=4).with_step_of(t1=0.0, t0=2.0) == solvers.RK4(dt=0.5)
    for unchanged in (solvers.RK4(), solvers.RK4(dt=0.3)):
        assert unchanged.with_step_of(2.0) is unchanged
    assert solvers.RK4(num_steps=4).with_step_of(math.inf) == solvers.RK4(num_steps=4)


@cases.each(cases.SOLVERS)
def test_the_kind_of_a_solver_is_its_base_class(case: cases.SolverCase) -> None:
    kinds = {
        "fixed": solvers.FixedStepSolver,
        "adaptive": solvers.AdaptiveSolver,
        "relaxation": solvers.RelaxationSolver,
    }
    assert [kind for kind, base in kinds.items() if isinstance(case.solver, base)] == [case.kind]
    assert case.solver.reaches_equilibrium == (case.kind == "relaxation")
