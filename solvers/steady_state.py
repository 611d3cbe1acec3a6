"""The stopping rule |f| <= atol + rtol |y|."""

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from solvers.checks import non_negative_number, positive_int


def max_norm(y: Tensor) -> Tensor:
    """Largest magnitude per sample, (batch,), outside the autograd graph. NaN counts as the largest."""
    y = y.detach() if y.requires_grad else y
    if y.ndim == 1:
        return y.abs()
    if y.numel() == 0:
        return y.new_zeros(y.shape[0])
    return y.flatten(1).abs().amax(1)  # on a CPU vector_norm with ord=inf takes thirty times as long


def largest_change(y: Tensor, y_next: Tensor) -> Tensor:
    """`max_norm` of the difference, with room for a single one."""
    change = (y_next.detach() - y.detach()).abs_()
    return change.flatten(1).amax(1) if y.ndim > 1 and y.numel() else max_norm(change)


@dataclass(frozen=True)
class SteadyState:
    """Stop each sample by itself when max|f(y)| <= atol + rtol max|y|; reaching it is success.

    The norms are maxima over a sample, so the rule depends neither on its size nor on the rest of the batch. The
    defaults lie a little above the rounding noise of float32.

    Args:
        rtol, atol: tolerances, not both zero.
        max_steps: the limit for a fixed-step solver on the horizon t1 = inf; solvers with a limit of their own and
            finite horizons do not look at it.
    """

    rtol: float = 1e-5
    atol: float = 1e-6
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        non_negative_number("rtol", self.rtol)
        non_negative_number("atol", self.atol)
        if self.rtol == self.atol == 0:
            raise ValueError(
                "rtol and atol are both 0, which no iteration in floating point can promise to reach: give one of "
                "them, or for a given number of iterations rtol=0 and atol=0 to a relaxation solver itself"
            )
        positive_int("max_steps", self.max_steps)

    def reached(self, residual: np.ndarray, size: np.ndarray) -> np.ndarray:
        """Whether a sample is steady, given its max-norm residual and size, all (batch,) on the host."""
        return np.asarray(residual <= self.atol + self.rtol * np.where(np.isfinite(size), size, np.nan).astype(float))

    def in_motion(self, residual: Tensor, size: Tensor) -> Tensor:
        """Whether a sample is neither steady nor broken, given its max-norm residual and size, all (batch,)."""
        return (residual > self.atol + self.rtol * size) & (residual < math.inf)
