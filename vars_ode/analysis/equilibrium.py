"""The equilibrium of a field, in float64: the reference for the errors of solves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import solvers
from vars_ode.analysis.active_set import active_set
from vars_ode.analysis.problems import InitialValueProblem
from vars_ode.fields import ReconstructionArgs
from vars_ode.representation import tensor_repr


@dataclass(frozen=True)
class Equilibrium:
    """An equilibrium in float64.

    Attributes:
        state, code: (batch, ...).
        residual: max |f| at the state, (batch,).
        converged: whether the residual is below the tolerance, (batch,) boolean.
    """

    state: Tensor
    code: Tensor
    residual: Tensor
    converged: Tensor

    __repr__ = tensor_repr

    def require(self) -> Equilibrium:
        """The equilibrium itself; a ValueError if it was not found for some sample."""
        if bool(self.converged.all()):
            return self
        raise ValueError(
            f"no equilibrium was found for {int((~self.converged).sum())} of {len(self.converged)} samples: max |f| "
            f"stays at {float(self.residual.nan_to_num(math.inf).max()):.2g}. The field may have none (a learned "
            'factor, the "gelu" threshold), its rate may be unstable, or its Gram too ill-conditioned. '
            'reference="trajectory" needs no equilibrium'
        )


@torch.no_grad()
def find_equilibrium(problem: InitialValueProblem, tolerance: float = 1e-9, max_steps: int = 3000) -> Equilibrium:
    """The equilibrium to which the flow from y0 converges.

    For a lasso problem Douglas-Rachford splitting comes near, and an active-set method corrects the support and solves
    the optimality conditions on it: exact to rounding even if G is ill-conditioned, where splitting alone takes tens of
    thousands of iterations to find the support. At lam = 0 minimisers need not be unique; the flow keeps the part of y0
    in the null space of G, and its limit is G^+ b + (I - G^+ G) y0. Other fields are iterated, T(y) = y + f(y), and
    then by Anderson's acceleration.

    Args:
        problem: its own solver is not used.
        tolerance: a state with max |f| <= tolerance (1 + max |y|) counts as an equilibrium.
        max_steps: of each of the methods.
    """
    problem = problem.to(torch.float64)
    args: Any = problem.args
    if problem.is_convex and isinstance(args.gram, Tensor):
        if bool((args.sparsity == 0).all()):
            return _assess(problem, _linear_limit(problem, args), tolerance)
        return _assess(problem, _lasso(problem, args, tolerance, max_steps), tolerance)
    best = _assess(problem, problem.y0, tolerance)
    # momentum diverges for rates between 1 / |G| and 2 / |G|, for which plain iteration still converges
    methods = (solvers.Nesterov, solvers.FixedPoint) if problem.is_convex else (solvers.FixedPoint, solvers.Anderson)
    for method in methods:
        solver = method(max_steps=max_steps, rtol=0.1 * tolerance, atol=0.1 * tolerance)
        restarted = InitialValueProblem(problem.field, best.state, args)
        found = _assess(problem, restarted.solve(solver).y1, tolerance)
        better = (found.residual < best.residual).view(-1, *[1] * (best.state.ndim - 1))  # False where it diverged
        best = _assess(problem, torch.where(better, found.state, best.state), tolerance)
        if bool(best.converged.all()):
            break
    return best


def _assess(problem: InitialValueProblem, state: Tensor, tolerance: float) -> Equilibrium:
    residual = problem.rate(state).flatten(1).abs().amax(1)
    converged = residual <= tolerance * (1 + state.flatten(1).abs().amax(1))
    return Equilibrium(state, problem.code(state), residual, converged)


def _linear_limit(problem: InitialValueProblem, args: ReconstructionArgs) -> Tensor:
    """The limit of the linear flow y' = eta (b - G y), to which both fields reduce at lam = 0."""
    inverse = torch.linalg.pinv(args.gram, rtol=1e-12, hermitian=True)
    return problem.y0 + inverse @ (args.drive - args.gram @ problem.y0)


def _lasso(problem: InitialValueProblem, args: ReconstructionArgs, tolerance: float, max_steps: int) -> Tensor:
    field: Any = problem.field
    state = problem.y0
    for steps in (max(1, max_steps // 10), max_steps):
        restarted = InitialValueProblem(field, state, args)
        found = restarted.solve(solvers.DouglasRachford(max_steps=steps, rtol=0.0, atol=0.0))
        state = field.state(active_set(problem.code(found.y1), args), args)
        if bool(_assess(problem, state, 1e-3 * tolerance).converged.all()):
            break
    return state
