"""The balls that adversarial images stay in: l_inf, every value moved by at most eps; l2, all together by eps.

A new norm is a class with these three methods and a row in `BALLS`.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

import solvers
from vars_ode.robustness.randomness import image_generator

__all__ = ["BALLS", "Ball", "ball"]


class Ball(Protocol):
    def steepest(self, gradient: Tensor) -> Tensor:
        """The step of length 1 along which a linear function of this gradient rises most, for each image."""

    def project(self, images: Tensor, clean: Tensor, eps: float) -> Tensor:
        """Images (batch, channels, height, width) back into [0, 1] and the ball of radius eps around the clean ones."""

    def start(self, images: Tensor, seed: int, restart: int, indices: Sequence[int]) -> Tensor:
        """Uniform in the unit ball, of the images' shape, each image's from its own generator."""


class _Linf:
    def steepest(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def project(self, images: Tensor, clean: Tensor, eps: float) -> Tensor:
        return images.clamp((clean - eps).clamp_min(0), (clean + eps).clamp_max(1))

    def start(self, images: Tensor, seed: int, restart: int, indices: Sequence[int]) -> Tensor:
        if not indices:
            return torch.zeros_like(images)
        draws = [torch.rand(images.shape[1:], generator=image_generator(seed, "pgd", restart, i)) for i in indices]
        return 2 * torch.stack(draws).to(images) - 1


class _L2:
    def steepest(self, gradient: Tensor) -> Tensor:
        return gradient / _length(gradient).clamp_min(torch.finfo(gradient.dtype).tiny)

    def project(self, images: Tensor, clean: Tensor, eps: float) -> Tensor:
        moved = images - clean
        # Clipping to [0, 1] moves values towards the clean ones, and so stays in the ball.
        return (clean + moved * (eps / _length(moved).clamp_min(eps)).clamp_max(1)).clamp(0, 1) if eps else clean

    def start(self, images: Tensor, seed: int, restart: int, indices: Sequence[int]) -> Tensor:
        if not indices:
            return torch.zeros_like(images)
        return torch.stack([self._point(images.shape[1:], seed, restart, index) for index in indices]).to(images)

    def _point(self, shape: torch.Size, seed: int, restart: int, index: int) -> Tensor:
        generator = image_generator(seed, "pgd", restart, index)
        direction = torch.randn(shape, generator=generator)
        radius = torch.rand((), generator=generator) ** (1 / direction.numel())
        return radius * direction / direction.norm()


def _length(values: Tensor) -> Tensor:
    return torch.linalg.vector_norm(values, dim=(1, 2, 3), keepdim=True)


BALLS: dict[str, Ball] = {"linf": _Linf(), "l2": _L2()}


def ball(norm: str) -> Ball:
    """The ball of a norm: "linf" or "l2".

    Raises:
        ValueError: for another.
    """
    solvers.checks.one_of("norm", norm, BALLS)
    return BALLS[norm]
