"""What may stand in place of a Gram matrix beside a tensor, and linear systems on the supports of codes."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from vars_ode.representation import tensor_repr


class GramOperator(Protocol):
    """A Gram that is applied without being formed. A NamedTuple of tensors, so that gradients reach them.

    It may have an attribute `why_no_energy`, a sentence: the reason why fields with this Gram descend no energy.
    """

    def __matmul__(self, code: Tensor, /) -> Tensor:
        """G a."""

    def resolvent(self, code: Tensor, rho: float) -> Tensor:
        """(G + rho I)^-1 a."""

    def shifted(self, mu: Tensor) -> "GramOperator":
        """G + mu I, mu broadcasting against (..., 1, 1)."""

    # It may say by `why_no_energy`, a sentence, that no energy belongs to a field with this in place of the Gram.


def shifted(gram: Tensor | GramOperator, mu: Tensor) -> Tensor | GramOperator:
    """G + mu I, the Gram of the elastic net E + 1/2 mu |a|^2 (Zou & Hastie 2005); mu broadcasts against (..., 1, 1)."""
    if not isinstance(gram, Tensor):
        return gram.shifted(mu)
    return gram + mu * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)


class FactoredGram(NamedTuple):
    """K G K in place of the Gram, (..., m, m), with the drive still Phi^T V: LISTA's learned coupling.

    Attributes:
        matrix: K G K, not symmetric in general.
    """

    matrix: Tensor

    def __repr__(self) -> str:
        return tensor_repr(self)

    def __matmul__(self, code: Tensor, /) -> Tensor:
        return self.matrix @ code

    def resolvent(self, code: Tensor, rho: float) -> Tensor:
        raise ValueError(f"there is no problem to split: {self.why_no_energy}")

    def shifted(self, mu: Tensor) -> "FactoredGram":
        matrix = shifted(self.matrix, mu)
        assert isinstance(matrix, Tensor)
        return FactoredGram(matrix)

    @property
    def why_no_energy(self) -> str:
        return (
            'learned="factor" replaces the Gram by K G K but not the drive Phi^T V, so the field is no gradient of an '
            'energy; learned="dictionary" changes both and has an energy'
        )


class MonotoneGram(NamedTuple):
    """A monotone operator in place of the Gram: a positive symmetric part and a rotation that no energy has.

    Attributes:
        matrix: H = S + A with S positive and A skew-symmetric, (..., m, m).
    """

    matrix: Tensor

    def __repr__(self) -> str:
        return tensor_repr(self)

    def __matmul__(self, code: Tensor, /) -> Tensor:
        return self.matrix @ code

    def resolvent(self, code: Tensor, rho: float) -> Tensor:
        matrix = shifted(self.matrix, self.matrix.new_full((), rho))
        assert isinstance(matrix, Tensor)
        return torch.linalg.solve_ex(matrix, code).result

    def shifted(self, mu: Tensor) -> "MonotoneGram":
        matrix = shifted(self.matrix, mu)
        assert isinstance(matrix, Tensor)
        return MonotoneGram(matrix)

    @property
    def why_no_energy(self) -> str:
        return (
            'learned="monotone" adds a rotation to the coupling, and a rotation is no gradient; the residual max|f| '
            'tells its equilibrium. learned="coupling" has no rotation and an energy'
        )


def solve_on_support(matrix: Tensor, support: Tensor, target: Tensor, symmetric: bool, limit: int = 1 << 24) -> Tensor:
    """x with M_SS x_S = target_S for the support S of every channel, zero off it; NaN where M_SS is singular.

    Conjugate gradients where M is symmetric, as they share the products of all channels and end within about m steps;
    where they do not converge, and otherwise, LU of every channel's system.

    Args:
        matrix: M, (batch, ..., m, m).
        support: 1 on S and 0 off it, (batch, ..., m, d).
        target: (batch, ..., m, d).
        symmetric: whether M is known to be so; where not, that is looked up.
        limit: entries of the systems of all channels that are held at once; beyond, samples take turns.
    """
    if symmetric or _is_symmetric(matrix):
        solution, converged = _conjugate_gradients(matrix, support, target * support)
        if converged:
            return solution
    return _by_elimination(matrix, support, target, limit)


def _conjugate_gradients(matrix: Tensor, mask: Tensor, target: Tensor) -> tuple[Tensor, bool]:
    """(x, whether every column's residual is small) for M_SS x = target, (batch, ..., m, d) columns at once.

    In place, as the time goes into passes over memory. The residual is that of x whatever M is, so what counts as
    converged is a solution.
    """
    tolerance = 1e-12 if target.dtype == torch.float64 else 5e-6
    tiny = torch.finfo(target.dtype).tiny
    x, residual, direction = torch.zeros_like(target), target.clone(), target.clone()
    square = (target * target).sum(-2, keepdim=True)
    goal = tolerance**2 * square
    for step in range(3 * target.shape[-2]):
        product = (matrix @ direction).mul_(mask)
        curvature = (direction * product).sum(-2, keepdim=True)
        length = (square / curvature.clamp_min_(tiny)).mul_(square > goal)  # columns that are done stand still
        x.addcmul_(length, direction)
        residual.addcmul_(length, product, value=-1)
        following = torch.mul(residual, residual, out=product).sum(-2, keepdim=True)
        if step % 2 and bool((following <= goal).all()):
            return x, True
        direction.mul_(following / square.clamp_min_(tiny)).add_(residual)
        square = following
    return x, False


def _by_elimination(matrix: Tensor, mask: Tensor, target: Tensor, limit: int) -> Tensor:
    size = target.shape[-2]
    if target.numel() * size > limit and len(target) > 1:
        matrices = matrix.expand(*target.shape[:-2], size, size)
        parts = zip(matrices.split(1), mask.split(1), target.split(1), strict=True)
        return torch.cat([_by_elimination(*part, limit) for part in parts])
    mask = mask.mT  # (batch, ..., d, m)
    system = matrix[..., None, :, :] * mask[..., :, None]
    system.mul_(mask[..., None, :]).diagonal(dim1=-2, dim2=-1).add_(1 - mask)
    solution, info = torch.linalg.solve_ex(system, (target.mT * mask)[..., None])
    return torch.where((info == 0)[..., None, None], solution, float("nan"))[..., 0].mT


def _is_symmetric(matrix: Tensor) -> bool:
    return bool((matrix - matrix.mT).abs().amax() <= 1e-5 * matrix.abs().amax())
