"""Baselines for VARS attention: Performer, and softmax attention with position-aware scaling.

Plain softmax attention is timm's own `timm.layers.Attention`.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import solvers
from vars_ode import grids
from vars_ode.configured import configured
from vars_ode.dictionaries.random_features import gaussian_projection, log_features
from vars_ode.grids import Grid
from vars_ode.layer import check_tokens, head_width, refuse_unsupported, warn_of_nonfinite
from vars_ode.masks import split_mask


def performer_attention(
    q: Tensor, k: Tensor, v: Tensor, projection: Tensor, normalize: bool, key_bias: Tensor | None = None
) -> Tensor:
    """Rows of phi(Q) phi(K)^T, l1-normalised, times V, without forming the map: (batch, heads, tokens, d).

    Args:
        q, k, v: (batch, heads, tokens, d).
        projection: random directions, (heads, d, m).
        normalize: l2-normalise queries and keys first.
        key_bias: additive, (batch or 1, heads or 1, 1, tokens); -inf masks a key.
    """
    log_q, log_k = (log_features(x, projection, normalize) for x in (q, k))
    if key_bias is not None:
        log_k = log_k + key_bias.transpose(-2, -1)
    # A factor per query cancels in its row, and one factor for all keys in every row.
    phi_q = (log_q - log_q.detach().amax(-1, keepdim=True)).exp()
    peak = log_k.detach().amax((-2, -1), keepdim=True)
    phi_k = (log_k - torch.where(peak.isinf(), 0.0, peak)).exp()  # infinite where every key is masked
    mass = phi_q @ phi_k.sum(-2)[..., None]
    return phi_q @ (phi_k.transpose(-2, -1) @ v) / mass.clamp_min(torch.finfo(mass.dtype).tiny)


class PerformerAttention(nn.Module):
    """Kernel self-attention with positive random features (Choromanski et al., ICLR 2021), as in the authors' code.

    Args:
        dim: width of the tokens, a multiple of `num_heads`.
        num_heads: heads.
        qkv_bias, proj_bias: whether the projections have a bias.
        qk_norm, scale_norm, attn_drop, norm_layer: arguments that timm's models pass; the first three are refused, as
            no attention matrix is formed.
        proj_drop: dropout on the output.
        num_features: random features per head; twice the width of a head by default.
        normalize_queries: l2-normalise queries and keys before the features (the authors' latest code).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        scale_norm: bool = False,
        proj_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm_layer: type[nn.Module] | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_features: int | None = None,
        normalize_queries: bool = True,
    ) -> None:
        super().__init__()
        refuse_unsupported("PerformerAttention", qk_norm=qk_norm, scale_norm=scale_norm, attn_drop=attn_drop)
        self.num_heads, self.head_dim = num_heads, head_width(dim, num_heads)
        if num_features is not None:
            solvers.checks.positive_int("num_features", num_features)
        self.num_features = num_features or 2 * self.head_dim
        self.normalize_queries = normalize_queries
        projection = gaussian_projection(num_heads, self.head_dim, self.num_features, False, device)
        self.register_buffer("projection", projection.to(dtype=dtype))
        self.projection: Tensor
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, device=device, dtype=dtype)
        self.proj = nn.Linear(dim, dim, bias=proj_bias, device=device, dtype=dtype)
        self.proj_drop = nn.Dropout(proj_drop)

    @classmethod
    def configured(cls, **options: Any) -> "type[PerformerAttention]":
        """A subclass with other defaults; see `VARSAttention.configured`."""
        return configured(cls, options)

    def stated_options(self) -> dict[str, Any]:
        """What the constructor was told, as it stands."""
        default = self.num_features == 2 * self.head_dim
        return {
            "num_features": None if default else self.num_features,
            "normalize_queries": self.normalize_queries,
        }

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Tokens (batch, tokens, dim) to the same; masks must be the same for every query, (..., 1, tokens)."""
        check_tokens(x, self.qkv.in_features, self.qkv.weight)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        with torch.autocast(x.device.type, enabled=False):
            dtype = torch.promote_types(v.dtype, torch.float32)
            q, k, values = q.to(dtype), k.to(dtype), v.to(dtype)
            key_bias, pair_mask = split_mask(attn_mask, is_causal, values)
            if pair_mask is not None:
                raise ValueError(
                    "PerformerAttention never forms the map that a mask which differs between queries would apply to; "
                    "mask keys, with a mask of shape (batch, 1, 1, tokens)"
                )
            output = performer_attention(q, k, values, self.projection.to(dtype), self.normalize_queries, key_bias)
        output = self.proj(output.to(v.dtype).transpose(1, 2).flatten(2))
        warn_of_nonfinite(self, x, output)
        return self.proj_drop(output)

    def extra_repr(self) -> str:
        return (
            f"num_heads={self.num_heads}, num_features={self.num_features}, normalize_queries={self.normalize_queries}"
        )


class PositionScaledAttention(nn.Module):
    """Softmax attention whose logits are multiplied by a learned factor per head and pair of positions.

    Position-aware attention scaling of Mao et al., Towards Robust Vision Transformer, CVPR 2022 (arXiv 2105.07926):
    softmax(Q (K^T * W_p) / sqrt(d)) V, with W_p starting at 1.

    Args:
        dim: width of the tokens, a multiple of `num_heads`.
        num_heads: heads.
        grid: (height, width) of tokens that the factor is learned on; on other grids it is interpolated (bicubic).
        qkv_bias: whether the projection to queries, keys and values has a bias.
        attn_drop: dropout on attention weights.
        proj_drop: dropout on the output.
    """

    takes_grid: ClassVar[bool] = True
    no_weight_decay_names: ClassVar[tuple[str, ...]] = ("position_scale",)

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        grid: Grid = (14, 14),
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_width(dim, num_heads)
        self.grid = grid = grids.check_grid(grid)
        tokens = math.prod(grid)
        self.position_scale = nn.Parameter(torch.ones(num_heads, tokens, tokens, device=device, dtype=dtype))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, device=device, dtype=dtype)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, grid: Grid | None = None) -> Tensor:
        """Tokens (batch, tokens, dim) on `grid` = (height, width), by default the layer's own, to the same."""
        check_tokens(x, self.qkv.in_features, self.qkv.weight)
        grids.check_tokens(grid or self.grid, x.shape[1])
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        logits = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
        weights = self.attn_drop((logits * self._scale_on(grid or self.grid)).softmax(-1))
        return self.proj_drop(self.proj((weights @ v).transpose(1, 2).flatten(2)))

    def _scale_on(self, grid: Grid) -> Tensor:
        """(heads, tokens, tokens) on another grid: queries and keys interpolated in turn."""
        if tuple(grid) == tuple(self.grid):
            return self.position_scale
        scale: Tensor = self.position_scale
        for _ in range(2):
            scale = grids.resample(scale, self.grid, grid).transpose(-2, -1)
        return scale

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, grid={self.grid}"
