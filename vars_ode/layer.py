"""What layers that solve a reconstruction problem share: a horizon, a solver and an adjoint, changeable at will."""

import math
from typing import Literal

import torch
from torch import Tensor

import solvers
from solvers import SteadyState
from solvers.adjoints import Adjoint
from vars_ode.fields import LCA, AnyArgs, ProximalFlow

INITIAL_STATES = ("feedforward", "zero")


class Recurrence:
    """Mixed into layers. They set `field` and `initial`, and the rest through `_set_solution`."""

    field: ProximalFlow | LCA
    _initial: str
    _t1: float
    _until: SteadyState | None
    _sparsity: float
    _solver: solvers.Solver
    _adjoint: Adjoint

    @property
    def solver(self) -> solvers.Solver:
        """The solver; assign a name or an object to change it on a living layer."""
        return self._solver

    @solver.setter
    def solver(self, choice: str | solvers.Solver) -> None:
        self._set_solution(self.t1, choice, self.adjoint, self.until)

    @property
    def adjoint(self) -> Adjoint:
        """How gradients get back through the solve; assign a name or an object to change it."""
        return self._adjoint

    @adjoint.setter
    def adjoint(self, choice: str | Adjoint) -> None:
        self._adjoint = solvers.adjoints.get(choice)

    @property
    def t1(self) -> float:
        """The horizon of the solve; assignable."""
        return self._t1

    @t1.setter
    def t1(self, horizon: float) -> None:
        self._set_solution(horizon, self.solver, self.adjoint, self.until)

    @property
    def until(self) -> SteadyState | None:
        """When an image is at rest; assignable."""
        return self._until

    @until.setter
    def until(self, rule: SteadyState | None) -> None:
        self._set_solution(self.t1, self.solver, self.adjoint, rule)

    @property
    def sparsity(self) -> float:
        """lam >= 0; assignable."""
        return self._sparsity

    @sparsity.setter
    def sparsity(self, value: float) -> None:
        solvers.checks.non_negative_number("sparsity", value)
        self._sparsity = value

    @property
    def initial(self) -> str:
        """Where the solve starts, "feedforward" or "zero"; assignable."""
        return self._initial

    @initial.setter
    def initial(self, choice: str) -> None:
        if choice not in INITIAL_STATES:
            raise ValueError(f"unknown initial state {choice!r}; choose one of {', '.join(INITIAL_STATES)}")
        self._initial = choice

    def _set_solution(
        self, t1: float, solver: str | solvers.Solver, adjoint: str | Adjoint, until: SteadyState | None
    ) -> None:
        solver = solvers.get(solver)
        if isinstance(t1, bool) or not isinstance(t1, int | float) or not t1 > 0:
            raise ValueError(
                f"t1, the horizon of the solve, must be a number above 0, got {t1!r}; for no recurrence at all take "
                "single_step_limit()"
            )
        if until is not None and not isinstance(until, SteadyState):
            raise ValueError(f"until must be a solvers.SteadyState(rtol, atol) or None, got {until!r}")
        if math.isinf(t1) and until is None and not solver.reaches_equilibrium:
            raise ValueError(
                f"t1=inf asks for the equilibrium, which {solver} does not stop at; use a relaxation solver such as "
                "'nesterov', or until=solvers.SteadyState(...)"
            )
        self._t1, self._until, self._solver = t1, until, solver
        self.adjoint = adjoint

    def _integrate(
        self,
        args: AnyArgs,
        x: Tensor,
        save_at: Tensor | Literal["steps"] | None = None,
        adjoint: Adjoint | None = None,
    ) -> solvers.Solution:
        y0 = self.field.feedforward(args) if self.initial == "feedforward" else torch.zeros_like(args.drive)
        solution = solvers.solve(
            self.field,
            y0,
            t1=self.t1,
            solver=self.solver,
            args=args,
            adjoint=adjoint or self.adjoint,
            save_at=save_at,
            until=self.until,
        )
        if not torch.compiler.is_compiling() and bool((solution.status == solvers.Status.NONFINITE).any()):
            _blame_input(x)
        return solution


def _blame_input(x: Tensor) -> None:
    """Tell a user's NaN from a diverging solve, which has its own status and warning."""
    if not bool(x.isfinite().all()):
        bad = int((~x.isfinite()).flatten(1).any(1).sum())
        raise ValueError(
            f"{bad} of {len(x)} inputs hold NaN or infinite values; check the data and the layers before this one"
        )
