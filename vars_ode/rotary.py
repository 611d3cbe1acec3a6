"""VARS attention with rotary position embeddings and the projections of timm's `AttentionRope` and `EvaAttention`."""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from torch import Tensor, nn

import solvers
from vars_ode.attention import VARSAttention
from vars_ode.grids import Grid
from vars_ode.layer import check_tokens


class VARSRotaryAttention(VARSAttention):
    """`VARSAttention` with the call of timm's `AttentionRope` and `EvaAttention`, and their parameters' names.

    Queries and keys, (batch, heads, tokens, head_dim), are rotated by the embedding of their token behind the prefix
    tokens before the dictionary makes templates of them (Su et al., RoFormer, 2021). Dictionaries with tied keys have
    one projection to (qk, v), as in `VARSAttention`.

    Args:
        dim, num_heads: as in `VARSAttention`.
        num_prefix_tokens: first tokens, which are not rotated.
        rotate_half: pairs of channels are (i, i + head_dim / 2) instead of (2 i, 2 i + 1).
        qkv_fused: one projection `qkv` instead of `q_proj`, `k_proj`, `v_proj`.
        qkv_bias: whether the projections have a bias.
        key_bias: whether keys have one too; without it a fused projection has `q_bias` and `v_bias` beside `qkv`.
        num_kv_heads: heads of keys and values, each of which serves num_heads / num_kv_heads heads of queries.
        options: further arguments of `VARSAttention`.

    Raises:
        ValueError: `num_kv_heads` is no divisor of `num_heads`, or differs from it with a fused projection.
    """

    context_names = ("rope", "attn_mask", "is_causal")

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        *,
        num_prefix_tokens: int = 1,
        rotate_half: bool = False,
        qkv_fused: bool = True,
        qkv_bias: bool = True,
        key_bias: bool = True,
        num_kv_heads: int | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias=qkv_bias, device=device, dtype=dtype, **options)
        self.num_prefix_tokens, self.rotate_half = num_prefix_tokens, rotate_half
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        solvers.checks.positive_int("num_kv_heads", self.num_kv_heads)
        grouped = self.num_kv_heads != num_heads
        if num_heads % self.num_kv_heads or (grouped and qkv_fused):
            raise ValueError(
                f"num_kv_heads={num_kv_heads} must divide num_heads={num_heads}, and needs qkv_fused=False where they "
                "differ"
            )
        self.q_bias: nn.Parameter | None = None
        self.v_bias: nn.Parameter | None = None
        if self.dictionary.tied:
            return
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        if not qkv_fused:
            width = self.num_kv_heads * self.head_dim
            self.q_proj = nn.Linear(dim, self.attn_dim, bias=qkv_bias, **factory)
            self.k_proj = nn.Linear(dim, width, bias=qkv_bias and key_bias, **factory)
            self.v_proj = nn.Linear(dim, width, bias=qkv_bias, **factory)
            self.qkv = None  # type: ignore[assignment]
        elif qkv_bias and not key_bias:
            self.qkv = nn.Linear(dim, 3 * self.attn_dim, bias=False, **factory)
            self.q_bias = nn.Parameter(torch.zeros(self.attn_dim, **factory))
            self.v_bias = nn.Parameter(torch.zeros(self.attn_dim, **factory))

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        rope: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        grid: Grid | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            x: tokens, (batch, tokens, dim).
            rope: sines and cosines by position, (..., tokens without prefix, 2 head_dim), as timm's models make them.
            attn_mask, is_causal, grid: as in `VARSAttention`.

        Returns:
            (batch, tokens, dim_out).
        """
        return self._attend(x, rope=rope, attn_mask=attn_mask, is_causal=is_causal, grid=grid)

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values before their rotation, each (batch, heads, tokens, head_dim)."""
        if self.qkv is None:
            check_tokens(x, self.dim, self.q_proj.weight)
            q = self._heads(self.q_proj(x), self.num_heads)
            k, v = (self._heads(projection(x), self.num_kv_heads) for projection in (self.k_proj, self.v_proj))
            groups = self.num_heads // self.num_kv_heads
            k = self.k_norm(k)
            if groups > 1:
                k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
            return self.q_norm(q), k, v
        if self.q_bias is None or self.v_bias is None:
            return super().queries_keys_values(x)
        check_tokens(x, self.dim, self.qkv.weight)
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        projected = F.linear(x, self.qkv.weight, bias)
        projected = projected.reshape(x.shape[0], x.shape[1], 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        return self.q_norm(projected[0]), self.k_norm(projected[1]), projected[2]

    def _heads(self, projected: Tensor, heads: int) -> Tensor:
        return projected.reshape(projected.shape[0], projected.shape[1], heads, self.head_dim).transpose(1, 2)

    def _placed(self, q: Tensor, k: Tensor, dtype: torch.dtype, rope: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rotated queries and keys; tied ones stay one tensor."""
        rotated = self._rotated(q, rope, dtype)
        return rotated, rotated if k is q else self._rotated(k, rope, dtype)

    def _rotated(self, q: Tensor, rope: Tensor | None, dtype: torch.dtype) -> Tensor:
        if rope is None:
            return q
        first = self.num_prefix_tokens
        rotated = apply_rot_embed_cat(q[:, :, first:].to(dtype), rope, half=self.rotate_half)
        return torch.cat([q[:, :, :first].to(dtype), rotated.to(dtype)], 2)

    def extra_repr(self) -> str:
        return f"num_prefix_tokens={self.num_prefix_tokens}, {super().extra_repr()}"
