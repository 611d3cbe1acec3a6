"""The two tables of the conformance suite: a solver enters by one row, and so does an adjoint."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import solver_problems as problems
from torch import Tensor

import solvers

EVERY_ADJOINT = ("direct", "checkpointed", "continuous", "implicit", "truncated")
Kind = Literal["fixed", "relaxation", "adaptive"]


@dataclass(frozen=True)
class SolverCase:
    """What the suite needs to know of a solver.

    Attributes:
        name: as registered.
        kind: "fixed" (a grid common to the batch), "adaptive" (controls its error), "relaxation" (only the limit).
        solver: cheap, for tests that compare the solver with itself.
        accurate: within `accuracy` of the exact solutions, or of the equilibrium for relaxation solvers.
        order, with_steps, steps: measured order, with n equal steps.
        evals_per_step: for solvers with equal steps.
        with_tolerance: error control, or the equilibrium's residual, by tolerance.
        limited: hits its step limit on any problem that it does not solve at once.
        adjoints: the ones defined for it.
        equilibrium: problem (field, leaves -> (y0, args)) for `relaxation` solvers, and for gradients.
        per_sample: False where other samples share step sizes, so that stats and rounding depend on them.
        gradient_tolerance: relative, against finite differences of the solver's own answer.

    Errors take up to 0.55 of `accuracy` and `gradient_tolerance`. They are those of the steps and not of rounding,
    which moves them in the fifth digit, so that the bounds need no room for other processors.
    """

    name: str
    kind: Kind
    solver: solvers.Solver
    accurate: solvers.Solver
    accuracy: float
    order: int | None = None
    with_steps: Callable[[int], solvers.Solver] | None = None
    steps: tuple[int, ...] = (20, 40, 80, 160)
    evals_per_step: int = 1
    with_tolerance: Callable[[float], solvers.Solver] | None = None
    limited: solvers.Solver | None = None
    adjoints: tuple[str, ...] = ("direct", "checkpointed", "implicit", "truncated")
    equilibrium: type = problems.Pull
    per_sample: bool = True
    gradient_tolerance: float = 1e-6

    def __str__(self) -> str:
        return self.name

    def problem(self, batch: int = 2) -> tuple[Any, Tensor, Any]:
        """(field, y0, args) with an equilibrium, that this solver can be asked to solve."""
        leaves = self.equilibrium.leaves(batch)
        field = self.equilibrium().requires_grad_(False)  # a solver without gradients would refuse its parameters
        return field, leaves["y0"], self.equilibrium.args(leaves)


@dataclass(frozen=True)
class AdjointCase:
    """How close an adjoint comes to finite differences.

    Attributes:
        tolerance: relative error.
        at_equilibrium: differentiates the limit only.
        of_flow: differentiates the exact flow, so that with fixed steps it is as close as these steps are to the flow.
    """

    name: str
    adjoint: solvers.adjoints.Adjoint
    tolerance: float = 1e-6
    at_equilibrium: bool = False
    of_flow: bool = False

    def __str__(self) -> str:
        return self.name


def _fixed(name: str, cls: Any, order: int, evals: int, accurate: int, accuracy: float) -> SolverCase:
    return SolverCase(
        name=name,
        kind="fixed",
        solver=cls(num_steps=5),
        accurate=cls(num_steps=accurate),
        accuracy=accuracy,
        order=order,
        with_steps=lambda n: cls(num_steps=n),
        evals_per_step=evals,
        adjoints=EVERY_ADJOINT,
    )


def _relaxation(name: str, cls: Any, **options: Any) -> SolverCase:
    return SolverCase(
        name=name,
        kind="relaxation",
        solver=cls(rtol=0, atol=1e-12),
        accurate=cls(rtol=0, atol=1e-12),
        accuracy=1e-11,
        with_tolerance=lambda tolerance: cls(rtol=0, atol=tolerance),
        limited=cls(max_steps=2, rtol=0, atol=1e-12),
        **options,
    )


def _adaptive(name: str, cls: Any, tolerance: float = 1e-6, fine: float = 1e-9, **options: Any) -> SolverCase:
    return SolverCase(
        name=name,
        kind="adaptive",
        solver=cls(rtol=tolerance, atol=tolerance),
        accurate=cls(rtol=fine, atol=fine),
        accuracy=100 * fine,
        with_tolerance=lambda tolerance: cls(rtol=tolerance, atol=tolerance),
        limited=cls(max_steps=2, rtol=1e-9, atol=1e-9),
        gradient_tolerance=10 * tolerance,  # differences move the step sizes, gradients do not
        **options,
    )


SOLVERS = [
    _fixed("euler", solvers.Euler, order=1, evals=1, accurate=1000, accuracy=2e-3),
    _fixed("midpoint", solvers.Midpoint, order=2, evals=2, accurate=200, accuracy=1e-4),
    _fixed("heun", solvers.Heun, order=2, evals=2, accurate=200, accuracy=1e-4),
    _fixed("rk4", solvers.RK4, order=4, evals=4, accurate=100, accuracy=1e-6),
    _fixed("exponential_euler", solvers.ExponentialEuler, order=1, evals=1, accurate=1000, accuracy=2e-3),
    _adaptive("bosh3", solvers.Bosh3, tolerance=1e-4, fine=1e-7, adjoints=EVERY_ADJOINT),
    _adaptive("dopri5", solvers.Dopri5, adjoints=EVERY_ADJOINT),
    _adaptive("tsit5", solvers.Tsit5, adjoints=EVERY_ADJOINT),
    _adaptive("dopri8", solvers.Dopri8, adjoints=EVERY_ADJOINT),
    _adaptive("scipy", solvers.Scipy, adjoints=("continuous", "implicit", "truncated")),
    _relaxation("fixed_point", solvers.FixedPoint),
    _relaxation("nesterov", solvers.Nesterov),
    _relaxation("anderson", solvers.Anderson),
    _relaxation("douglas_rachford", solvers.DouglasRachford, equilibrium=problems.Lasso),
]

ADJOINTS = [
    AdjointCase("direct", solvers.Direct()),
    AdjointCase("checkpointed", solvers.Checkpointed()),
    AdjointCase("continuous", solvers.Continuous(rtol=1e-9, atol=1e-9), tolerance=1e-5, of_flow=True),
    AdjointCase("implicit", solvers.Implicit(), at_equilibrium=True),
    AdjointCase("truncated", solvers.Truncated(steps=250), at_equilibrium=True),
]

ADJOINT_BY_NAME = {case.name: case for case in ADJOINTS}
FLOWS = [case for case in SOLVERS if case.kind != "relaxation"]
FIXED = [case for case in SOLVERS if case.kind == "fixed"]
RELAXATIONS = [case for case in SOLVERS if case.kind == "relaxation"]


def each(cases: list[Any], name: str = "case") -> Any:
    """Run a test once per row."""
    return pytest.mark.parametrize(name, cases, ids=str)


def pairs() -> list[tuple[SolverCase, AdjointCase]]:
    """Every solver with every adjoint defined for it."""
    return [(case, ADJOINT_BY_NAME[name]) for case in SOLVERS for name in case.adjoints]


each_pair = pytest.mark.parametrize(("case", "adjoint"), pairs(), ids=lambda row: row.name)
