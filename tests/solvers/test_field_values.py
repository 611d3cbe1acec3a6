"""What a field returns is checked at every stage of the first step, and costs nothing afterwards."""

from typing import Any

import pytest
import solver_cases as cases
import torch
from torch import Tensor

import solvers
from solvers import checks

WRONG = {
    "float64": (lambda rate: rate.double(), "of y's type, torch.float32, but got torch.float64"),
    "complex": (lambda rate: rate.cfloat(), "but got torch.complex64"),
    "half": (lambda rate: rate.half(), "but got torch.float16"),
    "integer": (lambda rate: rate.long(), "but got torch.int64"),
    "broadcast": (lambda rate: rate[:, :1], r"of y's shape, \(1, 3\), but got shape \(1, 1\)"),
    "number": (lambda rate: 1.0, "but got float"),
    "none": (lambda rate: None, "but got NoneType"),
}
STAGED = [solvers.Midpoint(num_steps=2), solvers.Heun(num_steps=2), solvers.RK4(num_steps=2)]
ALL = [*STAGED, solvers.Euler(num_steps=2), solvers.FixedPoint(), "tsit5", "bosh3", "anderson", "nesterov", "scipy"]


class Decay:
    """y' = -y, and `wrong` of it at the evaluations from number `first` on."""

    def __init__(self, wrong: Any = None, first: int = 0) -> None:
        self.wrong, self.first, self.calls = wrong, first, 0

    def __call__(self, t: Tensor, y: Tensor, args: Any) -> Any:
        self.calls += 1
        return -y if self.wrong is None or self.calls <= self.first else self.wrong(-y)


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("solver", ALL, ids=str)
def test_what_a_field_returns_at_first(solver: Any, name: str) -> None:
    wrong, message = WRONG[name]
    with pytest.raises(ValueError, match=f"the field must return a tensor {message}|{message}"):
        solvers.solve(Decay(wrong), torch.ones(1, 3), 1.0, solver)


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("solver", [*STAGED, "tsit5", "dopri8"], ids=str)
def test_what_a_field_returns_at_later_stages(solver: Any, name: str) -> None:
    wrong, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        solvers.solve(Decay(wrong, first=1), torch.ones(1, 3), 1.0, solver)


@cases.each(cases.FIXED)
def test_fixed_steps_after_the_first_are_not_checked(case: cases.SolverCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the one check per step that there is whatever the number of stages."""
    field, y0, args = case.problem()
    counts = []

    def counted(rate: Any, y: Tensor) -> Any:
        counts.append(1)
        return rate

    monkeypatch.setattr(checks, "rate_of_state", counted)
    solvers.solve(field, y0, 4.0, solvers.get(case.name, num_steps=4), args)
    few = len(counts)
    counts.clear()
    solvers.solve(field, y0, 4.0, solvers.get(case.name, num_steps=40), args)
    assert len(counts) == few
