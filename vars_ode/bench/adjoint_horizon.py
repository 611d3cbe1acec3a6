"""The error of each adjoint's gradient, by the horizon T: `python -m vars_ode.bench.adjoint_horizon`."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import solvers
from solvers import Dopri5
from vars_ode.bench.problem import reconstruction_args
from vars_ode.bench.table import table
from vars_ode.fields import ProximalFlow, ReconstructionArgs

COLUMNS = {
    "direct": (Dopri5(rtol=1e-5, atol=1e-6), solvers.Direct()),
    "checkpointed": (solvers.RK4(dt=0.5), solvers.Checkpointed()),
    "continuous": (Dopri5(rtol=1e-5, atol=1e-6), solvers.Continuous(rtol=1e-5, atol=1e-6)),
}
FLOW = (solvers.RK4(dt=0.02), solvers.Checkpointed())
EQUILIBRIUM = (solvers.DouglasRachford(max_steps=5000, rtol=0.0, atol=1e-11), solvers.Implicit())


@dataclass(frozen=True)
class AdjointHorizonRow:
    """Relative gradient error of each adjoint at one horizon; infinite if the backward solve failed."""

    horizon: float
    direct: float
    checkpointed: float
    continuous: float
    implicit: float


def adjoint_horizon(horizons: Sequence[float] = (5.0, 10.0, 20.0, 30.0)) -> list[AdjointHorizonRow]:
    """Gradients of |a(T)|^2 with respect to drive and Gram, where a(0) = 0 and a follows `ProximalFlow`.

    Errors are |g - g*| / |g*|. For the first three g* is the gradient of the flow at T, by RK4 with dt = 0.02 in
    float64, itself good to 1e-4. Direct and continuous solve with dopri5 at rtol 1e-5, forwards and backwards;
    checkpointed with RK4 of dt = 1/2. For implicit, which differentiates the limit T -> inf, g* is the active-set
    formula.
    """
    args = reconstruction_args(batch=2, tokens=49, features=32, head_dim=16)
    implicit = _distance(_gradient(args, math.inf, *EQUILIBRIUM), active_set_gradient(args))
    rows = []
    for horizon in horizons:
        exact = _gradient(args, horizon, *FLOW)
        errors = {name: _error(exact, args, horizon, *choice) for name, choice in COLUMNS.items()}
        rows.append(AdjointHorizonRow(horizon, **errors, implicit=implicit))
    return rows


def active_set_gradient(args: ReconstructionArgs) -> Tensor:
    """The gradient at the equilibrium a, which is G_SS^-1 (b_S - lam sign(a_S)) on its support S and zero elsewhere."""
    equilibrium = solvers.solve(ProximalFlow(), torch.zeros_like(args.drive), solver=EQUILIBRIUM[0], args=args).y1
    drive, gram = args.drive.clone().requires_grad_(), args.dense_gram.clone().requires_grad_()
    support = (equilibrium.abs() > 1e-8).to(equilibrium.dtype).mT  # (batch, dim, features)
    matrix = gram[:, None] * support[..., :, None] * support[..., None, :] + torch.diag_embed(1 - support)
    code = torch.linalg.solve(matrix, support * (drive - args.sparsity * equilibrium.sign()).mT)
    return _flat_gradient(code, drive, gram)


def _gradient(
    args: ReconstructionArgs, horizon: float, solver: solvers.Solver, adjoint: solvers.adjoints.Adjoint
) -> Tensor:
    drive, gram = args.drive.clone().requires_grad_(), args.dense_gram.clone().requires_grad_()
    leaves = args._replace(drive=drive, gram=gram)
    code = solvers.solve(ProximalFlow(), torch.zeros_like(drive), horizon, solver, leaves, adjoint=adjoint).y1
    return _flat_gradient(code, drive, gram)


def _flat_gradient(code: Tensor, drive: Tensor, gram: Tensor) -> Tensor:
    """The gradient of |a|^2 with respect to drive and Gram, as one vector."""
    gradients = torch.autograd.grad(code.square().sum(), (drive, gram))
    return torch.cat([gradient.flatten() for gradient in gradients])


def _error(
    exact: Tensor,
    args: ReconstructionArgs,
    horizon: float,
    solver: solvers.Solver,
    adjoint: solvers.adjoints.Adjoint,
) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", solvers.SolverWarning)  # the continuous adjoint's, which this measures
        try:
            return _distance(_gradient(args, horizon, solver, adjoint), exact)
        except solvers.SolverError:
            return math.inf


def _distance(gradient: Tensor, exact: Tensor) -> float:
    return float((gradient - exact).norm() / exact.norm())


if __name__ == "__main__":
    print(table(adjoint_horizon()))
