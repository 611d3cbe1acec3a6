"""A solver of one's own whose `step` returns what the loop cannot carry is refused in words."""

from dataclasses import dataclass
from typing import Any

import pytest
import solver_cases as cases
import torch
from torch import Tensor

import solvers

constant = object()
STEPS = {
    "no memory": (lambda y, m: y, r"must return the pair \(next y, next memory\), got a tensor of shape \(2, 3\)"),
    "a triple": (lambda y, m: (y, m, m), r"must return the pair"),
    "a list": (lambda y, m: [y, m], r"must return the pair.*got list"),
    "another y": (lambda y, m: (y[:, :1], m), r"next y of y's shape, \(2, 3\), got a tensor of shape \(2, 1\)"),
    "no y": (lambda y, m: (None, m), r"next y of y's shape, \(2, 3\), got NoneType"),
    "short": (
        lambda y, m: (y, m[:1]),
        r"it was given, \(a tensor .*, object\), got \(a tensor of shape \(2, 3\)\)",
    ),
    "long": (lambda y, m: (y, (*m, y)), "laid out as the one it was given"),
    "no tuple": (lambda y, m: (y, m[0]), r"laid out as .*, got a tensor of shape \(2, 3\): tensors, batch first"),
    "another shape": (lambda y, m: (y, (m[0][:, 0], m[1])), r"got \(a tensor of shape \(2,\), object\)"),
    "no tensor": (lambda y, m: (y, (0.5, m[1])), r"got \(float, object\)"),
    "another constant": (lambda y, m: (y, (m[0], object())), "constants are returned as they are"),
}


@dataclass(frozen=True)
class OfFixedStep(solvers.FixedStepSolver):
    order = evals_per_step = 1
    interpolation = "linear"

    def begin(self, field: Any, y0: Tensor, args: Any) -> Any:
        return y0, constant

    def step(self, field: Any, t: Tensor, dt: float, y: Tensor, rate: Tensor, memory: Any, args: Any) -> Any:
        return args[0](y, memory)


@dataclass(frozen=True)
class OfRelaxation(solvers.RelaxationSolver):
    def begin(self, field: Any, y0: Tensor, args: Any) -> Any:
        return y0, constant

    def step(self, field: Any, t: Tensor, dt: float, y: Tensor, rate: Tensor, memory: Any, args: Any) -> Any:
        return args[0](y, memory)


KINDS = [OfFixedStep(num_steps=3), OfRelaxation(max_steps=3), OfRelaxation(max_steps=3, rtol=0, atol=0)]


def decay(t: Tensor, y: Tensor, args: Any) -> Tensor:
    return -y


@pytest.mark.parametrize("adjoint", ["direct", "checkpointed"])
@pytest.mark.parametrize("solver", KINDS, ids=repr)
@pytest.mark.parametrize(("step", "message"), STEPS.values(), ids=STEPS)
def test_a_wrong_step_is_named(solver: Any, step: Any, message: str, adjoint: str) -> None:
    with pytest.raises(ValueError, match=f"{type(solver).__name__}.step .*{message}"):
        solvers.solve(decay, torch.ones(2, 3), 1.0, solver, (step,), adjoint=adjoint)


@pytest.mark.parametrize("solver", KINDS, ids=repr)
def test_a_right_step_is_taken(solver: Any) -> None:
    solution = solvers.solve(decay, torch.ones(2, 3), 1.0, solver, (lambda y, m: (y / 2, (y, m[1])),), on_failure="nan")
    assert solution.stats["num_steps"].tolist() == [3, 3]


def test_a_wrong_begin_is_named() -> None:
    @dataclass(frozen=True)
    class Forgetful(OfRelaxation):
        def begin(self, field: Any, y0: Tensor, args: Any) -> Any:
            return y0

    with pytest.raises(ValueError, match=r"Forgetful.begin must return a tuple.*got a tensor of shape \(2, 3\)"):
        solvers.solve(decay, torch.ones(2, 3), solver=Forgetful())


@cases.each([case for case in cases.SOLVERS if case.kind != "adaptive"])
def test_only_the_first_step_is_looked_at(case: cases.SolverCase, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = solvers.stepping._check_step
    monkeypatch.setattr(solvers.stepping, "_check_step", lambda *a: (calls.append(a), original(*a)))
    field, y0, args = case.problem()
    for adjoint in ("direct", "checkpointed"):
        calls.clear()
        with torch.no_grad():
            assert solvers.solve(field, y0, 2.0, case.solver, args, adjoint=adjoint).stats["num_steps"].max() > 1
        assert len(calls) == 1
