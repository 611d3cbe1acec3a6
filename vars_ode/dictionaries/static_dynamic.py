"""VARS-SD: learned templates over the token grid beside those made from the input."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vars_ode.dictionaries.dictionary import Dictionary, Reconstruction, Shape, Templates, refuse_pair_mask
from vars_ode.dictionaries.dynamic import Dynamic, reconstruction

MAX_INFERRED_PREFIX = 8  # class, distillation and register tokens of the models in use


@dataclass(frozen=True)
class StaticDynamic(Dictionary):
    """A learned, position-indexed block of templates appended to `Dynamic`'s; all columns of unit l2 norm.

    Args:
        grid: (height, width) of the token grid the block is learned on. Other grids get it resampled (bicubic).
        num_prefix_tokens: tokens before the grid (class, registers), which static templates do not extend over. None
            infers it: the count that leaves `grid`, or else the smallest that leaves a square.
        orthogonal: as in `Dynamic`.
    """

    grid: tuple[int, int] = (14, 14)
    num_prefix_tokens: int | None = None
    orthogonal: bool = False

    def __post_init__(self) -> None:
        valid = isinstance(self.grid, tuple | list) and len(self.grid) == 2
        if not valid or not all(isinstance(side, int) and side > 0 for side in self.grid):
            raise ValueError(f"grid must be (height, width) in tokens, got {self.grid!r}")
        object.__setattr__(self, "grid", tuple(self.grid))
        prefix = self.num_prefix_tokens
        if prefix is not None and (not isinstance(prefix, int) or prefix < 0):
            raise ValueError(f"num_prefix_tokens must be a whole number of at least 0, or None, got {prefix!r}")

    def build(self, shape: Shape, **factory: Any) -> "StaticDynamicTemplates":
        return StaticDynamicTemplates(shape, self, **factory)


class StaticDynamicTemplates(Templates):
    """`static`, (heads, tokens of the grid, m), beside dynamic templates: 2 m in all."""

    tied = True

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
        self.input_grid: tuple[int, int] | None = None  # of the tokens to come, from a model that knows its images
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
    ) -> Reconstruction:
        refuse_pair_mask(pair_mask, "static+dynamic")
        read, write = self.dynamic.templates(q, key_bias)
        static_read, static_write = self.static_templates(q.shape[-2], key_bias, q.dtype)
        batch = (q.shape[0], -1, -1, -1)
        read = torch.cat([read, static_read.expand(batch)], -1)
        write = read if key_bias is None else torch.cat([write, static_write.expand(batch)], -1)
        return reconstruction(read, write, v, dropout)

    def static_templates(self, tokens: int, key_bias: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(read, write) static templates for a number of tokens, each (batch or 1, heads, tokens, m)."""
        prefix, grid = self._layout(tokens)
        static = self.static.to(dtype)
        if grid != self.grid:
            image = static.transpose(-2, -1).unflatten(-1, self.grid)
            image = F.interpolate(image, size=grid, mode="bicubic", align_corners=False)
            static = image.flatten(-2).transpose(-2, -1)
        static = F.pad(static, (0, 0, prefix, 0))[None]
        if key_bias is None:
            static = F.normalize(static, dim=-2)
            return static, static
        write = static * key_bias.transpose(-2, -1).exp()
        norm = torch.linalg.vector_norm(write, dim=-2, keepdim=True)
        norm = torch.where(norm > 0, norm, 1.0)  # every token of the grid masked: columns of zeros
        return static / norm, write / norm

    def _layout(self, tokens: int) -> tuple[int, tuple[int, int]]:
        """How many prefix tokens and which grid a sequence consists of."""
        own = math.prod(self.grid)
        known = self.num_prefix_tokens
        prefixes = range(MAX_INFERRED_PREFIX + 1) if known is None else (known,)
        if self.input_grid is not None and tokens - math.prod(self.input_grid) in prefixes:
            return tokens - math.prod(self.input_grid), self.input_grid
        if tokens - own in prefixes:
            return tokens - own, self.grid
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
