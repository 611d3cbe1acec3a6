"""GMRES for a batch of linear systems that are known only by what they do to a vector."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]


class LinearSolution(NamedTuple):
    """x (batch, n), and per system (batch,) its error as `gmres` defines it."""

    x: Tensor
    error: Tensor


def gmres(operator: Operator, b: Tensor, rtol: float, max_steps: int, restart: int) -> LinearSolution:
    """Solve A x = b, sample by sample, by the generalised minimal residual method with restarts.

    Saad & Schultz, GMRES, SIAM J. Sci. Stat. Comput. 1986, algorithm 4. It asks neither symmetry nor definiteness of
    A and its residual never rises. Preferred to the conjugate gradients (A is not symmetric in general), to BiCGSTAB
    (which may break down) and to GCR (which stagnates on rotations).

    A system is done when its error |b - A x| / (|b| + min(|x|, 1000 |b|)) is at most rtol. For A of norm about 1 that
    is a backward error, which floating point can reach; the bound keeps a singular system from passing with a huge x.
    The x of a system that is done no longer changes while others are still being solved.

    Args:
        operator: x -> A x for the whole batch, (batch, n) to (batch, n).
        b: right-hand sides, (batch, n).
        rtol: tolerance.
        max_steps: limit of operator applications.
        restart: dimension of the Krylov space; memory is (restart + 1) vectors.
    """
    x, residual, steps = torch.zeros_like(b), b, 0
    while True:
        scale = _norm(b) + torch.minimum(_norm(x), 1000 * _norm(b))
        todo = _norm(residual) > rtol * scale  # not where it is NaN: nothing would help
        if steps >= max_steps or not bool(todo.any()):
            return LinearSolution(x, _norm(residual) / _nonzero(scale))
        dimension = min(restart, max_steps - steps)
        correction, used = _cycle(operator, torch.where(todo[:, None], residual, 0.0), rtol * scale, dimension)
        x = x + correction
        residual = b - operator(x)
        steps += used + 1


def _cycle(operator: Operator, residual: Tensor, limit: Tensor, dimension: int) -> tuple[Tensor, int]:
    """The correction (batch, n) that minimises the residual over a Krylov space, and the operator's applications.

    Systems with residual zero get the correction zero. The Hessenberg matrix is reduced to the triangle R as it
    grows: Q collects the rotations, and g = Q |r| e_1 ends in the norm of the residual that is left.
    """
    batch = len(residual)
    beta = _norm(residual)
    q = torch.eye(dimension + 1, dtype=residual.dtype, device=residual.device).expand(batch, -1, -1)
    r = residual.new_zeros(batch, dimension, dimension)
    basis = (residual / _nonzero(beta)[:, None])[:, None]
    used = 0
    for k in range(dimension):
        w = operator(basis[:, k])
        used += 1
        column, following = _orthogonalise(w, basis)
        column = (q[:, : k + 2, : k + 2] @ column[..., None])[..., 0]
        q, diagonal = _rotated(q, column, k)
        r[:, :k, k], r[:, k, k] = column[:, :k], diagonal
        left = beta * q[:, k + 1, 0].abs()
        if not bool((left > limit).any()):
            break
        following = torch.where((left > limit)[:, None], following, 0.0)  # no new vector for systems that are done
        basis = torch.cat([basis, following[:, None]], dim=1)
    y = _back_substitution(r[:, :used, :used], beta[:, None] * q[:, :used, 0])
    return (y[:, None] @ basis[:, :used])[:, 0], used


def _orthogonalise(w: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """The column (batch, k + 2) of the Hessenberg matrix, and the next basis vector; Gram-Schmidt, done twice."""
    size, column = _norm(w), w.new_zeros(basis.shape[:2])
    for _ in range(2):
        part = (basis @ w[..., None])[..., 0]
        w, column = w - (part[:, None] @ basis)[:, 0], column + part
    length = _norm(w)
    length = torch.where(length > 10 * torch.finfo(w.dtype).eps * size, length, 0.0)  # else the space is exhausted
    following = torch.where(length[:, None] > 0, w / _nonzero(length)[:, None], 0.0)
    return torch.cat([column, length[:, None]], dim=1), following


def _rotated(q: Tensor, column: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Q with the rotation that zeroes the last entry of `column`, and the diagonal entry of R that this makes."""
    above, below = column[:, k], column[:, k + 1]
    diagonal = torch.hypot(above, below)
    cos = torch.where(diagonal > 0, above / _nonzero(diagonal), 1.0)[:, None]
    sin = (below / _nonzero(diagonal))[:, None]
    q = q.clone()
    upper, lower = q[:, k].clone(), q[:, k + 1].clone()
    q[:, k], q[:, k + 1] = cos * upper + sin * lower, cos * lower - sin * upper
    return q, diagonal


def _back_substitution(r: Tensor, g: Tensor) -> Tensor:
    """R y = g with y = 0 where the diagonal of R is zero to rounding: directions that the operator does not reach."""
    diagonal = r.diagonal(dim1=1, dim2=2).abs()
    empty = diagonal <= 10 * torch.finfo(r.dtype).eps * diagonal.amax(1, keepdim=True)
    r = r + torch.diag_embed(empty.to(r.dtype))
    return torch.linalg.solve_triangular(r, torch.where(empty, 0.0, g)[..., None], upper=True)[..., 0]


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=1)


def _nonzero(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 1.0)
