"""VARS-SD: learned templates over the token grid, in addition to those of VARS-D."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vars_ode import grids
from vars_ode.dictionaries.dictionary import Dictionary, Reconstruction, Shape, Templates
from vars_ode.dictionaries.dynamic import Dynamic, reconstruction
from vars_ode.grids import Grid


@dataclass(frozen=True)
class StaticDynamic(Dictionary):
    """The templates of `Dynamic` and as many learned ones, functions of the position; columns of unit l2 norm.

    Args:
        grid: (height, width) of the token grid that templates are learned on. They are resampled to others (bicubic).
        num_prefix_tokens: tokens before the grid (class, registers), where static templates are zero. With None it is
            inferred: the count behind which the tokens fill `grid`, or else the smallest before a square grid.
        orthogonal: as in `Dynamic`.
    """

    grid: tuple[int, int] = (14, 14)
    num_prefix_tokens: int | None = None
    orthogonal: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", grids.check_grid(self.grid))
        prefix = self.num_prefix_tokens
        if prefix is not None and (not isinstance(prefix, int) or prefix < 0):
            raise ValueError(f"num_prefix_tokens must be a whole number of at least 0, or None, got {prefix!r}")

    def build(self, shape: Shape, **factory: Any) -> "StaticDynamicTemplates":
        return StaticDynamicTemplates(shape, self, **factory)


class StaticDynamicTemplates(Templates):
    """Dynamic templates and `static`, (heads, tokens of the grid, m): 2 m in all."""

    tied = True
    takes_grid = True

    def __init__(
        self,
        shape: Shape,
        choice: StaticDynamic,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dynamic = Dynamic(choice.orthogonal).build(shape, device=device, dtype=dtype)
        self.grid = choice.grid
        self.num_prefix_tokens = choice.num_prefix_tokens
        self.num_templates = 2 * self.dynamic.num_features
        size = (shape.num_heads, math.prod(self.grid), self.dynamic.num_features)
        self.static = nn.Parameter(torch.randn(size, device=device).to(dtype=dtype))

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        key_bias: Tensor | None = None,
        pair_mask: Tensor | None = None,
        dropout: float = 0.0,
        grid: Grid | None = None,
    ) -> Reconstruction:
        read, write = self.dynamic.templates(q, key_bias)
        static_read, static_write = self.static_templates(q.shape[-2], key_bias, q.dtype, grid)
        batch = (q.shape[0], -1, -1, -1)
        read = torch.cat([read, static_read.expand(batch)], -1)
        write = read if key_bias is None else torch.cat([write, static_write.expand(batch)], -1)
        return reconstruction(read, write, v, dropout)

    def static_templates(
        self, tokens: int, key_bias: Tensor | None, dtype: torch.dtype, grid: Grid | None = None
    ) -> tuple[Tensor, Tensor]:
        """(read, write) static templates for a number of tokens, each (batch or 1, heads, tokens, m)."""
        prefix, grid = self._layout(tokens, grid)
        static = self.static.to(dtype)
        static = grids.resample(static.transpose(-2, -1), self.grid, grid).transpose(-2, -1)
        static = F.pad(static, (0, 0, prefix, 0))[None]
        if key_bias is None:
            static = F.normalize(static, dim=-2)
            return static, static
        write = static * key_bias.transpose(-2, -1).exp()
        norm = torch.linalg.vector_norm(write, dim=-2, keepdim=True)
        norm = torch.where(norm > 0, norm, 1.0)  # every token of the grid masked: columns of zeros
        return static / norm, write / norm

    def _layout(self, tokens: int, grid: Grid | None) -> tuple[int, Grid]:
        """(number of prefix tokens, grid) of a sequence."""
        known = self.num_prefix_tokens
        prefixes = range(grids.MAX_PREFIX_TOKENS + 1) if known is None else (known,)
        for candidate in (grid, self.grid):
            if candidate is not None and tokens - math.prod(candidate) in prefixes:
                return tokens - math.prod(candidate), candidate
        for prefix in prefixes:
            side = math.isqrt(max(tokens - prefix, 0))
            if side and side * side == tokens - prefix:
                return prefix, (side, side)
        raise ValueError(
            f"{tokens} tokens are neither the static grid {self.grid} nor a square grid behind {prefixes[-1]} prefix "
            "tokens or fewer; give the layer its grid: "
            "dictionary=StaticDynamic(grid=(height, width), num_prefix_tokens=...)"
        )

    def extra_repr(self) -> str:
        return f"grid={self.grid}, num_prefix_tokens={self.num_prefix_tokens}"
