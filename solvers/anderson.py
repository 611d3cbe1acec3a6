"""Anderson acceleration of fixed-point iteration, safeguarded."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from solvers.checks import positive_int, positive_number
from solvers.field import Field
from solvers.relaxation import RelaxationSolver
from solvers.stepping import Grid, Memory


class _History(NamedTuple):
    """What Anderson carries, all batch first: tensors only, so that samples that have stopped keep theirs."""

    y: Tensor  # the last state and its rate
    rate: Tensor
    dy: Tensor  # differences of the last states and of their rates, (batch, memory, n), newest last
    drate: Tensor
    best: Tensor  # the smallest norm of a rate so far, (batch,), and the plain step from there
    fallback: Tensor


@dataclass(frozen=True)
class Anderson(RelaxationSolver):
    """Combines the last iterates so that the residual, taken as linear between them, is smallest (type II).

    With dY, dF the differences of the last `memory` states and of their rates f:

        y <- y + f - (dY + dF) gamma,    gamma = argmin |f - dF gamma|^2 + regularisation tr(dF^T dF) |gamma|^2

    Walker & Ni, Anderson acceleration for fixed-point iterations, SIAM J. Numer. Anal. 2011, eq. 2.5. Each sample has
    a window of its own. The regularisation is relative to the residuals, which an absolute one outgrows as they
    vanish, so that the acceleration would end where it is needed.

    Safeguard: where |f| rises above `growth` times its smallest value so far, a sample forgets its window and takes
    the plain step y + f from where |f| was smallest. Where y + f(y) is a non-expansive map, as ISTA is, that step
    cannot raise |f|. Residuals of a good window are not monotone, hence the room: with growth = 1, up to half of the
    steps are thrown away on ill-conditioned Gram matrices.

    In backpropagation through the iterations gamma is held constant, since its own derivative grows without bound as
    dF^T dF vanishes. That gradient has the right limit, but reaches it later than the state does: the adjoint
    'implicit' is the one to use with this solver.

    Args:
        memory: m, differences in the window.
        regularisation: 1e-5 stands above the rounding noise of dF^T dF in float32; far smaller ones win little in
            float64 and lose on Gram matrices with a wide spectrum.
        growth: how far |f| may rise.
    """

    memory: int = 5
    regularisation: float = 1e-5
    growth: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive_int("memory", self.memory)
        positive_number("regularisation", self.regularisation)
        if isinstance(self.growth, bool) or not isinstance(self.growth, int | float) or not self.growth >= 1:
            raise ValueError(f"growth must be at least 1, got {self.growth!r}")

    def begin(self, field: Field, y0: Tensor, args: Any) -> Memory:
        window = y0.new_zeros(len(y0), self.memory, y0.shape[1:].numel())
        unknown = torch.full((len(y0),), float("inf"), dtype=y0.dtype, device=y0.device)
        return _History(y0, torch.zeros_like(y0), window, window, unknown, y0)

    def step(
        self, field: Field, t: Tensor, dt: float, y: Tensor, rate: Tensor, memory: Memory, args: Any
    ) -> tuple[Tensor, Memory]:
        return self.follow(y, y + rate, rate, memory, overwrite=False)

    def follows(self, grid: Grid) -> bool:
        return True

    def follow(
        self, y: Tensor, target: Tensor, rate: Tensor | None, memory: Memory, overwrite: bool
    ) -> tuple[Tensor, Memory]:
        last = _History(*memory)
        rate = target - y if rate is None else rate
        size = torch.linalg.vector_norm(rate.detach().reshape(len(y), y.shape[1:].numel()), dim=1)
        rejected = size > self.growth * last.best
        better = size < last.best
        best, fallback = torch.where(better, size, last.best), _where(better, target, last.fallback)

        forget = rejected | last.best.isinf()
        dy = _where(forget, 0.0, _push(last.dy, y - last.y))
        drate = _where(forget, 0.0, _push(last.drate, rate - last.rate))
        gamma = self._weights(drate.detach(), rate.detach())
        accelerated = target - ((dy + drate).mT @ gamma).view_as(y)
        y_next = _where(rejected, fallback, accelerated)
        return y_next, _History(y, rate, dy, drate, best, fallback)

    def _weights(self, drate: Tensor, rate: Tensor) -> Tensor:
        """gamma, (batch, memory, 1); zero for rows of the window that are."""
        gram = drate @ drate.mT
        scale = gram.diagonal(dim1=1, dim2=2).sum(1)
        scale = torch.where(scale > 0, scale, 1.0)[:, None, None]
        identity = torch.eye(self.memory, dtype=rate.dtype, device=rate.device)
        rhs = drate @ rate.reshape(len(rate), rate.shape[1:].numel(), 1)
        return torch.linalg.solve_ex(gram / scale + self.regularisation * identity, rhs / scale).result


def _push(window: Tensor, newest: Tensor) -> Tensor:
    return torch.cat([window[:, 1:], newest.reshape(len(newest), 1, newest.shape[1:].numel())], dim=1)


def _where(condition: Tensor, chosen: Tensor | float, other: Tensor) -> Tensor:
    return torch.where(condition.view(-1, *[1] * (other.ndim - 1)), chosen, other)
