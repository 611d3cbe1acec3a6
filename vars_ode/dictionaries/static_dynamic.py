"""VARS-SD: learned templates over the token grid, in addition to those of VARS-D."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vars_ode import grids
from vars_ode.dictionaries.dictionary import Dictionary, Reconstruction, Shape, Templates
from vars_ode.dictionaries.dynamic import Dynamic, reconstruction, scaled_reconstruction
from vars_ode.dictionaries.random_features import is_masked
from vars_ode.grids import Grid


@dataclass(frozen=True)
class StaticDynamic(Dictionary):
    """The templates of `Dynamic` and as many learned ones, functions of the position; columns of unit l2 norm.

    Args:
        grid: (height, width) of the token grid that templates are learned on. They are resampled to others (bicubic).
        num_prefix_tokens: tokens before the grid (class, registers), where static templates are zero. None: as the
            vision transformer of timm's that the layer is in has them, or else inferred: the count behind which the
            tokens fill `grid`, or else the smallest before a square grid; an error where `grid` would leave some of a
            square number of tokens.
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
        static_read, static_write = self.static_templates(q.shape[-2], key_bias, q.dtype, grid)
        if key_bias is None:
            return scaled_reconstruction(self.dynamic.raw_templates(q), v, dropout, static_read)
        read, write = self.dynamic.templates(q, key_bias)
        batch = (q.shape[0], -1, -1, -1)
        read = torch.cat([read, static_read.expand(batch)], -1)
        write = torch.cat([write, static_write.expand(batch)], -1)
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
        largest = write.abs().amax(-2, keepdim=True)
        read = torch.where(is_masked(key_bias), static.clamp(-largest, largest), static)
        return read / norm, write / norm

    def _layout(self, tokens: int, grid: Grid | None) -> tuple[int, Grid]:
        """(number of prefix tokens, grid) of a sequence; a ValueError where that is unknown or ambiguous."""
        tokens, known = grids.known_number(tokens), self.num_prefix_tokens
        prefixes = range(grids.MAX_PREFIX_TOKENS + 1) if known is None else (known,)
        if grid is not None:
            prefix = tokens - math.prod(grids.check_grid(grid))
            if prefix < 0 or known not in (None, prefix):
                expected = "" if known is None else f" behind {known} prefix tokens"
                raise ValueError(
                    f"{tokens} tokens do not fill the grid {tuple(grid)}, {math.prod(grid)} positions{expected}"
                )
            return prefix, grid
        own, square = self._own_reading(tokens, prefixes), _square_reading(tokens, prefixes)
        if own is not None and own[0] and known is None and square is not None and square[0] == 0:
            raise ValueError(
                f"{tokens} tokens may be a grid of {own[1]} behind {own[0]} prefix tokens or of {square[1]} behind "
                f"{square[0]}; give the layer dictionary=StaticDynamic(grid=(height, width), num_prefix_tokens=...), "
                "or its call grid=(height, width)"
            )
        found = own or square
        if found is not None:
            return found
        raise ValueError(
            f"{tokens} tokens are neither the static grid {self.grid} nor a square grid behind {prefixes[-1]} prefix "
            "tokens or fewer; give the layer its grid: "
            "dictionary=StaticDynamic(grid=(height, width), num_prefix_tokens=...)"
        )

    def _own_reading(self, tokens: int, prefixes: Sequence[int]) -> tuple[int, Grid] | None:
        prefix = tokens - math.prod(self.grid)
        return (prefix, self.grid) if prefix in prefixes else None

    def extra_repr(self) -> str:
        return f"grid={self.grid}, num_prefix_tokens={self.num_prefix_tokens}"


def _square_reading(tokens: int, prefixes: Sequence[int]) -> tuple[int, Grid] | None:
    """The largest square behind as many tokens."""
    for prefix in prefixes:
        side = math.isqrt(max(tokens - prefix, 0))
        if side and side * side == tokens - prefix:
            return prefix, (side, side)
    return None
