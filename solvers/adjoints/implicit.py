"""The gradient of an equilibrium by the implicit function theorem."""

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from solvers.adjoints.adjoint import Adjoint, seeks_equilibrium
from solvers.checks import positive_int, positive_number, rate_of_state
from solvers.krylov import gmres
from solvers.solution import Solution, SolverError, SolverWarning, Status
from solvers.solver import Loop
from solvers.tracing import refuse_transforms, values
from solvers.tree import map_tensors, tensors


@dataclass(frozen=True)
class Implicit(Adjoint):
    """Differentiates the equilibrium where the solve ended, not its steps: memory of one evaluation, however many.

    At an equilibrium f(y, theta) = 0, with J = df/dy,

        dL/dtheta = (df/dtheta)^T w,    -J^T w = dL/dy,    dL/dy0 = 0

    (Bai, Kolter & Koltun, Deep equilibrium models, NeurIPS 2019, theorem 1, with f(y) = T(y) - y). The linear system
    is solved by the field itself where it offers `solve_transposed(y, args, grad)`, and otherwise matrix-free, sample
    by sample, with vector-Jacobian products of the field: see `solvers.krylov`. The options below are of the latter.

    Recommended for relaxation solvers and for `until=SteadyState(...)`. The gradient is as good as the equilibrium: an
    error of the state goes into J and df/dtheta. Samples that had not reached it get the gradient of an equilibrium all
    the same, with a warning. There is no gradient of a gradient, nor one of saved states before the last.

    `theta` is all that the field reads: `args`, parameters of modules, tensors it closes over. `stats` count the
    forward solve; two more evaluations connect its answer to the graph.

    Args:
        rtol: tolerance of the linear system, as `solvers.krylov.gmres` defines it; where it is missed a warning states
            the error. None for 1e-12 in float64 and 1e-6 in float32.
        max_steps: limit of vector-Jacobian products.
        restart: dimension of the Krylov space; as many vectors of the state's size are held while the gradient is
            computed. Smaller ones save memory and may need far more products.
    """

    rtol: float | None = None
    max_steps: int = 1000
    restart: int = 50

    def __post_init__(self) -> None:
        if self.rtol is not None:
            positive_number("rtol", self.rtol)
        positive_int("max_steps", self.max_steps)
        positive_int("restart", self.restart)

    def solve(self, loop: Loop, y0: Tensor, args: Any) -> Solution:
        refuse_finite_horizons(loop, "implicit")
        refuse_transforms("the adjoint 'implicit'", [y0, *tensors(args)], "use adjoint='direct'")
        with torch.no_grad():
            solution = loop.run(y0, args)
        if not torch.is_grad_enabled():
            return solution
        field, end = loop.problem.field, loop.problem.t1 if math.isfinite(loop.problem.t1) else loop.problem.t0
        t = torch.tensor(end, dtype=y0.dtype, device=y0.device)
        equilibrium = solution.y1.detach()  # without any step it is y0 itself, with what is upstream of that
        rate = rate_of_state(field(t, equilibrium, args), equilibrium)  # its graph leads to all that the field reads
        if not (rate.requires_grad or y0.requires_grad):
            return solution
        warn_of_motion(solution)
        linear = _LinearSystem(self, field, t, equilibrium.clone().requires_grad_(), map_tensors(Tensor.detach, args))
        y1 = _Equilibrium.apply(rate, y0, equilibrium, linear)
        ys = y1[None] if loop.problem.save_at is None else trajectory_without_gradient(solution.ys, y1, "implicit")
        return replace(solution, ys=ys, y1=y1)


class _Equilibrium(torch.autograd.Function):
    """Passes the equilibrium on; on the way back it turns dL/dy into w and hands that to the rate."""

    @staticmethod
    def forward(ctx: Any, rate: Tensor, y0: Tensor, equilibrium: Tensor, linear: "_LinearSystem") -> Tensor:
        ctx.linear = linear
        return equilibrium.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise SolverError(
                "the adjoint 'implicit' has no second derivative: it was asked for one by create_graph=True; use "
                "adjoint='direct' with enough steps to reach the equilibrium"
            )
        return ctx.linear.solve(grad), torch.zeros_like(grad), None, None


class _LinearSystem:
    """-J^T w = grad at an equilibrium: by the field itself where it knows how, else by GMRES.

    `args` are those of the forward pass. What is no part of them may have changed by the time of the backward pass, so
    the graph for GMRES is built at once, unless the field solves the system from `args` alone.
    """

    def __init__(self, adjoint: Implicit, field: Any, t: Tensor, state: Tensor, args: Any) -> None:
        self.adjoint, self.field, self.t, self.state, self.args = adjoint, field, t, state, args
        solves_itself = hasattr(field, "solve_transposed") and not isinstance(field, torch.nn.Module)
        self.rate = None if solves_itself else self._rate()

    def solve(self, grad: Tensor) -> Tensor:
        """w, shaped as the state."""
        if hasattr(self.field, "solve_transposed"):
            with torch.no_grad():
                w = self.field.solve_transposed(self.state.detach(), self.args, grad)
            if w is not None and bool(w.isfinite().all()):
                return w
        rate = self._rate() if self.rate is None else self.rate
        return _by_gmres(self.adjoint, self.state, rate, grad)

    def _rate(self) -> Tensor:
        with torch.enable_grad():
            return self.field(self.t, self.state, self.args)


def trajectory_without_gradient(ys: Tensor, y1: Tensor, name: str) -> Tensor:
    """Saved states of a solve whose steps the adjoint `name` does not differentiate; to ask for it is an error."""
    return _Trajectory.apply(ys, y1, name)


class _Trajectory(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ys: Tensor, y1: Tensor, name: str) -> Tensor:
        ctx.name = name
        return ys.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        raise SolverError(
            f"the adjoint {ctx.name!r} differentiates the equilibrium `y1` alone, but a gradient of the saved states "
            "`ys` was asked for: use `y1`, or adjoint='direct' or 'checkpointed'"
        )


def _by_gmres(adjoint: Implicit, state: Tensor, rate: Tensor, grad: Tensor) -> Tensor:
    """w with -J^T w = grad, shaped as the state."""

    def operator(w: Tensor) -> Tensor:
        if not rate.requires_grad:  # the field does not depend on the state
            return torch.zeros_like(w)
        (product,) = torch.autograd.grad(rate, state, w.view_as(state), retain_graph=True, allow_unused=True)
        return torch.zeros_like(w) if product is None else -product.reshape(w.shape)

    b = grad.reshape(grad.shape[0], grad.shape[1:].numel())
    rtol = adjoint.rtol if adjoint.rtol is not None else 1e-12 if b.dtype == torch.float64 else 1e-6
    w, error = gmres(operator, b, rtol, adjoint.max_steps, adjoint.restart)
    missed = ~(error <= rtol)
    if bool(missed.any()):
        warnings.warn(
            f"the linear system of the implicit gradient is solved to a relative residual of {float(error.max()):.3e}, "
            f"not {rtol:.3e}, for {int(missed.sum())} of {len(error)} samples: raise max_steps or restart of Implicit, "
            "bring the state closer to the equilibrium, or look for an equilibrium that is not isolated",
            SolverWarning,
            stacklevel=2,
        )
    return w.view_as(state)


def refuse_finite_horizons(loop: Loop, name: str) -> None:
    """A ValueError unless the solve ends at an equilibrium."""
    if not seeks_equilibrium(loop):
        raise ValueError(
            f"the adjoint {name!r} differentiates equilibria, but this solve ends at t1={loop.problem.t1} whether it "
            "has reached one or not: give until=SteadyState(...) or a relaxation solver such as 'nesterov'; for a "
            "finite horizon use the adjoint 'direct', 'checkpointed' or 'continuous'"
        )


def warn_of_motion(solution: Solution) -> None:
    """Warn of samples that are not at the equilibrium whose gradient they get."""
    moving = int((values(solution.status) == int(Status.SUCCESS)).sum())
    if moving:
        warnings.warn(
            f"{moving} of {len(solution.status)} samples reached t1 before a steady state; the implicit gradient is "
            "that of an equilibrium, which they are not at. Raise t1, or loosen SteadyState",
            SolverWarning,
            stacklevel=4,
        )
