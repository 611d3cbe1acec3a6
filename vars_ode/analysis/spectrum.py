"""The spectral radius of the linearised solver step: how fast, and whether, the iteration contracts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import solvers
from vars_ode.analysis.problems import per_problem

_AVERAGED = 10  # growth factors in the mean, which converges also if the dominant eigenvalues are a complex pair


def spectral_radius(
    field: solvers.Field, y: Tensor, args: Any = None, iterations: int = 100, seed: int = 0, t: float = 0.0
) -> Tensor:
    """rho of T'(y) for T(y) = y + f(t, y), per problem, in float64: (batch,), or (batch, heads) for larger states.

    T is a step of Euler's method with dt = 1 (ISTA). The method is power iteration with the transpose, which has the
    same spectrum: v <- v + f'(y)^T v by vector-Jacobian products, so that no matrix is formed. The estimate is the
    geometric mean of the last growth factors |v'| / |v|. If T'(y) is similar to a symmetric matrix, as for both fields
    of sparse reconstruction, it is a lower bound; its error is about the gap between the largest eigenvalues if that
    is small.

    Args:
        field, y, args: as for `solvers.solve`; y is a single state, (batch, ...).
        iterations: vector-Jacobian products.
        seed: of the start vectors.
        t: the time at which f is linearised.
    """
    solvers.checks.positive_int("iterations", iterations)
    with torch.enable_grad():
        state = y.detach().double().requires_grad_()
        args = solvers.tree.cast_floating(solvers.tree.map_tensors(torch.Tensor.detach, args), torch.float64)
        rate = field(torch.tensor(t, dtype=state.dtype, device=state.device), state, args)
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(state.shape, generator=generator, dtype=torch.float64).to(state.device)
    growth = []
    for _ in range(iterations):
        v = v / _size(v, v)
        (pulled,) = torch.autograd.grad(rate, state, v, retain_graph=True)
        v = v + pulled
        growth.append(torch.linalg.vector_norm(per_problem(v), dim=-1))
    return torch.stack(growth[-_AVERAGED:]).log().mean(0).exp()


def _size(v: Tensor, like: Tensor) -> Tensor:
    size = torch.linalg.vector_norm(per_problem(v), dim=-1)
    size = torch.where(size > 0, size, 1.0)
    return size.view(*size.shape, *[1] * (like.ndim - size.ndim))
