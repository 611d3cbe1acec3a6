"""Time of VARS-S with its Gram applied as A (A^H a), and with the r x r products per frequency formed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import solvers
from vars_ode.convolutional import ConvolutionGram, VARSConvAttention, synthesis
from vars_ode.measuring import fastest


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

    def times(self, spectrum: Tensor) -> Tensor:
        """Spectra (batch, channels, r, H, W // 2 + 1) to the same."""
        matrices = torch.view_as_complex(self.matrices)
        if self.product == "einsum":
            return torch.einsum("cijhw,bcjhw->bcihw", matrices, spectrum)
        columns = spectrum.permute(0, 1, 3, 4, 2)[..., None]
        return (matrices @ columns)[..., 0].permute(0, 1, 4, 2, 3)

    def __matmul__(self, code: Tensor) -> Tensor:
        result = self.times(torch.fft.rfft2(code, norm="ortho"))
        return torch.fft.irfft2(result, s=code.shape[-2:], norm="ortho")


@dataclass(frozen=True)
class VarsSRow:
    """Milliseconds of the fastest run with the Gram applied, and with it formed and multiplied in two ways."""

    part: str
    applied_ms: float
    einsum_ms: float
    matmul_ms: float
    applied_over_einsum: float
    applied_over_matmul: float


def vars_s(batch: int = 8, grid: tuple[int, int] = (14, 14), channels: int = 192, repeats: int = 10) -> list[VarsSRow]:
    """Time the Gram per frequency, with the transforms around it, and in three ISTA steps; by default as in RVT-Ti.

    The variants differ in the Gram only. Products are formed once per run, as a layer would in each forward pass. The
    variants take turns of three runs, so that load on the machine affects all of them and each finds its own data in
    the cache; the fastest run is reported. Without gradients, and with the current number of threads.
    """
    torch.manual_seed(0)
    layer = VARSConvAttention(channels, grid)
    x = torch.randn(batch, grid[0] * grid[1], channels)
    with torch.no_grad():
        args, _ = layer.problem(x)
        assert isinstance(args.gram, ConvolutionGram)
        y0 = layer.field.feedforward(args)
        grams: list[Callable[[], Any]] = [lambda: args.gram]
        grams += [partial(FormedGram.of, args.gram.filters, product) for product in ("einsum", "matmul")]

        def steps(gram: Callable[[], Any]) -> Tensor:
            return solvers.solve(layer.field, y0, 3.0, "euler", args=args._replace(gram=gram())).y1

        filters, spectrum = torch.view_as_complex(args.gram.filters), torch.fft.rfft2(y0, norm="ortho")
        product: list[Callable[[], Tensor]] = [lambda: filters * synthesis(filters, spectrum).unsqueeze(2)]

        def apply(gram: Callable[[], Any]) -> Tensor:
            return gram() @ y0

        def multiply(gram: Callable[[], Any]) -> Tensor:
            return gram().times(spectrum)

        product += [partial(multiply, gram) for gram in grams[1:]]
        once = [partial(apply, gram) for gram in grams]
        solve = [partial(steps, gram) for gram in grams]
        parts: dict[str, Sequence[Callable[[], Tensor]]]
        parts = {"product per frequency": product, "Gram, with transforms": once, "three steps": solve}
        return [_row(part, variants, repeats) for part, variants in parts.items()]


def _row(part: str, variants: Sequence[Callable[[], Tensor]], repeats: int) -> VarsSRow:
    applied = variants[0]()
    for variant in variants[1:]:
        torch.testing.assert_close(applied, variant(), rtol=1e-3, atol=1e-3)
    times: list[list[float]] = [[] for _ in variants]
    for _ in range(repeats):
        for variant, record in zip(variants, times, strict=True):
            record.append(fastest(variant, applied.device, repeats=3)[1])
    ours, einsum, matmul = (min(record) for record in times)
    return VarsSRow(part, ours, einsum, matmul, ours / einsum, ours / matmul)
