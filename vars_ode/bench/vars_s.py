"""What it saves VARS-S to apply its Gram as A (A^H a) instead of forming r x r products per frequency."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor

import solvers
from vars_ode.convolutional import VARSConvAttention


class FormedGram(NamedTuple):
    """G = k k^H as r x r matrices per channel and frequency, by torch's FFT.

    Attributes:
        matrices: (channels, r, r, H, W // 2 + 1, 2) for "einsum", (channels, H, W // 2 + 1, r, r, 2) for "matmul".
        product: how they are multiplied by spectra, "einsum" or "matmul".
    """

    matrices: Tensor
    product: str

    @classmethod
    def of(cls, filters: Tensor, product: str) -> "FormedGram":
        """From spectra as (real, imaginary) pairs, (channels, r, H, W // 2 + 1, 2)."""
        k = torch.view_as_complex(filters)
        matrices = k[:, :, None] * k[:, None].conj()
        if product == "matmul":
            matrices = matrices.permute(0, 3, 4, 1, 2).contiguous()
        return cls(torch.view_as_real(matrices), product)

    def __matmul__(self, code: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(code, norm="ortho")
        matrices = torch.view_as_complex(self.matrices)
        if self.product == "einsum":
            result = torch.einsum("cijhw,bcjhw->bcihw", matrices, spectrum)
        else:
            columns = spectrum.permute(0, 1, 3, 4, 2)[..., None]
            result = (matrices @ columns)[..., 0].permute(0, 1, 4, 2, 3)
        return torch.fft.irfft2(result, s=code.shape[-2:], norm="ortho")


@dataclass(frozen=True)
class VarsSRow:
    """Milliseconds with the Gram applied, and with it formed and multiplied in two ways: the fastest of the repeats."""

    part: str
    applied_ms: float
    einsum_ms: float
    matmul_ms: float
    applied_over_einsum: float
    applied_over_matmul: float


def vars_s(batch: int = 8, grid: tuple[int, int] = (14, 14), channels: int = 192, repeats: int = 15) -> list[VarsSRow]:
    """Time one application of the Gram, and the recurrence of three ISTA steps, on a block of RVT-Ti by default.

    All variants start from the same spectra and share everything but the Gram. Their runs take turns, so that a busy
    machine is busy for all of them, and the fastest counts. The thread count is left as it is.
    """
    torch.manual_seed(0)
    layer = VARSConvAttention(channels, grid)
    x = torch.randn(batch, grid[0] * grid[1], channels)
    with torch.no_grad():
        args = layer.problem(x)
        y0 = layer.field.feedforward(args)
        formed = (FormedGram.of(args.gram[0], product) for product in ("einsum", "matmul"))
        variants = [args, *(args._replace(gram=cast(Tensor, gram)) for gram in formed)]
        once = [lambda v=v: v.gram @ y0 for v in variants]
        solve = [lambda v=v: solvers.solve(layer.field, y0, 3.0, args=v).y1 for v in variants]
        return [_row("Gram", once, repeats), _row("three steps", solve, repeats)]


def _row(part: str, variants: Sequence[Callable[[], Tensor]], repeats: int) -> VarsSRow:
    applied = variants[0]()
    for variant in variants[1:]:
        torch.testing.assert_close(applied, variant(), rtol=1e-3, atol=1e-3)
    times: list[list[float]] = [[] for _ in variants]
    for _ in range(repeats):
        for variant, record in zip(variants, times, strict=True):
            start = time.perf_counter()
            variant()
            record.append(1e3 * (time.perf_counter() - start))
    ours, einsum, matmul = (min(record) for record in times)
    return VarsSRow(part, ours, einsum, matmul, ours / einsum, ours / matmul)
