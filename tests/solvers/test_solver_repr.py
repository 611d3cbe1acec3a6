"""Representations: short, and for solvers and adjoints the call that rebuilds them."""

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import solver_cases as cases
import torch
from solver_problems import pull
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import solvers

SHORT = {
    "Euler(dt='natural')": solvers.Euler(),
    "RK4(num_steps=5)": solvers.RK4(num_steps=5),
    "ExponentialEuler(dt=0.5)": solvers.ExponentialEuler(dt=0.5),
    "Dopri5()": solvers.Dopri5(),
    "Dopri5(rtol=1e-06)": solvers.Dopri5(rtol=1e-6),
    "Dopri5(backend='torchdiffeq')": solvers.Dopri5(backend="torchdiffeq"),
    "Scipy(method='Radau')": solvers.Scipy("Radau"),
    "Nesterov(max_steps=20, rtol=0, atol=0)": solvers.Nesterov(max_steps=20, rtol=0, atol=0),
    "DouglasRachford(rho=2.0)": solvers.DouglasRachford(rho=2.0),
    "Implicit(restart=10)": solvers.Implicit(restart=10),
    "Direct()": solvers.Direct(),
}


@pytest.mark.parametrize(("expected", "built"), SHORT.items(), ids=SHORT)
def test_only_what_differs_from_the_defaults(expected: str, built: Any) -> None:
    assert repr(built) == str(built) == expected
    assert eval(expected, vars(solvers)) == built


@cases.each(cases.SOLVERS)
def test_a_representation_rebuilds_the_solver(case: cases.SolverCase) -> None:
    for solver in (case.solver, case.accurate, case.limited, solvers.get(case.name)):
        if solver is not None:
            assert eval(repr(solver), vars(solvers)) == solver


def test_the_natural_step_can_be_written_as_it_is_displayed() -> None:
    assert solvers.Euler(dt="natural") == solvers.Euler()  # type: ignore[arg-type]
    assert solvers.get("heun", dt="natural").dt is None  # type: ignore[attr-defined]
    assert solvers.get(solvers.RK4(num_steps=3), num_steps=None, dt="natural") == solvers.RK4()
    with pytest.raises(ValueError, match="dt must be a finite number above 0, got 'large'"):
        solvers.Euler(dt="large")  # type: ignore[arg-type]


@dataclass(frozen=True)
class Own(solvers.Nesterov):
    """A solver of one's own, by the plain decorator."""

    beta: float = 0.5
    table: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Named(solvers.Euler):
    def __repr__(self) -> str:
        return "mine"


def test_solvers_of_ones_own_are_short_too() -> None:
    assert repr(Own(beta=0.9, rtol=0.1)) == "Own(rtol=0.1, beta=0.9, table=[])"
    assert repr(Named()) == "mine"


def test_a_solution_is_displayed_by_shapes_and_counts() -> None:
    solution = solvers.solve(lambda t, y, args: -y, torch.full((3, 4), 7.25), 1.0, solvers.RK4(num_steps=5))
    assert repr(solution) == "Solution(ts=(1,), ys=(1, 3, 4), y1=(3, 4), status=3 x SUCCESS, num_steps=5)"


def test_a_solution_with_several_outcomes() -> None:
    y0 = torch.tensor([[0.0], [1.0], [math.nan], [math.nan], [0.5]])
    rule = solvers.SteadyState(rtol=0, atol=0.1)
    solution = solvers.solve(
        lambda t, y, args: -y, y0, math.inf, solvers.Euler(dt=0.5), until=rule, on_failure="nan", save_at="steps"
    )
    steps = solution.stats["num_steps"]
    assert steps.min() < steps.max()
    counts = "status=3 x STEADY_STATE + 2 x NONFINITE"
    assert f"{counts}, num_steps={steps.min()}..{steps.max()})" in repr(solution)
    assert "nan" not in repr(solution)


def test_an_empty_solution_is_displayed() -> None:
    solution = solvers.solve(lambda t, y, args: -y, torch.zeros(0, 4), 1.0)
    assert repr(solution) == "Solution(ts=(1,), ys=(1, 0, 4), y1=(0, 4), status=none, num_steps=0)"
    bare = solvers.Solution(torch.zeros(1), torch.zeros(1, 2, 1), torch.zeros(2, 1), torch.zeros(2).long(), {})
    assert "status=2 x SUCCESS" in repr(bare)


TRACED = "Solution(ts=(1,), ys=(1, 2, 3), y1=(2, 3), traced)"


def test_a_solution_is_displayed_where_it_holds_no_numbers() -> None:
    y0 = torch.ones(2, 3)
    seen: list[str] = []

    def noted(y0: Tensor) -> Tensor:
        solution = solvers.solve(lambda t, y, args: -y, y0, 1.0, solvers.Euler(num_steps=2), on_failure="nan")
        seen.append(repr(solution))
        return solution.y1

    transforms = [torch.func.vmap(noted), torch.func.jacrev(noted), make_fx(noted, tracing_mode="fake")]
    for transform, argument in zip(transforms, (torch.stack([y0, y0]), y0, y0), strict=True):
        transform(argument)
        assert seen.pop().startswith("Solution(ts=(1,), ys=(1, 2, 3), y1=(2, 3), ")
    parts = [torch.zeros(1), torch.zeros(1, 2, 3), torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)]
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(part) for part in parts]
        assert repr(solvers.Solution(*fake, {"num_steps": fake[3]})) == TRACED
    meta = [part.to("meta") for part in parts]
    assert repr(solvers.Solution(*meta, {"num_steps": meta[3]})) == TRACED


@pytest.mark.parametrize("fullgraph", [True, False])
def test_a_solution_is_displayed_while_it_is_compiled(fullgraph: bool) -> None:
    field, y0, args = pull()
    torch._dynamo.reset()

    def end(y0: Tensor) -> tuple[Tensor, str]:
        solution = solvers.solve(field, y0, 1.0, solvers.Euler(num_steps=2), args)
        return solution.y1, solution.__repr__()

    y1, text = torch.compile(end, backend="eager", fullgraph=fullgraph)(y0)
    assert y1.allclose(end(y0)[0], rtol=1e-12)
    assert text.startswith("Solution(ts=(1,), ys=(1, 2, 3), y1=(2, 3), ")
