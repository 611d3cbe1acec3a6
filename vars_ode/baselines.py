"""What VARS attention is compared with: Performer, and softmax attention with position-aware scaling.

Plain softmax attention is timm's own `timm.layers.Attention`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import solvers
from vars_ode.dictionaries.random_features import gaussian_projection, log_features

Grid = tuple[int, int]


def performer_attention(q: Tensor, k: Tensor, v: Tensor, projection: Tensor, normalize: bool) -> Tensor:
    """Rows of phi(Q) phi(K)^T, l1-normalised, times V, without forming the map: (batch, heads, tokens, d).

    Args:
        q, k, v: (batch, heads, tokens, d).
        projection: random directions, (heads, d, m).
        normalize: l2-normalise queries and keys first.
    """
    log_q, log_k = (log_features(x, projection, normalize) for x in (q, k))
    # A factor per query cancels in its row, and one factor for all keys in every row.
    phi_q = (log_q - log_q.detach().amax(-1, keepdim=True)).exp()
    phi_k = (log_k - log_k.detach().amax((-2, -1), keepdim=True)).exp()
    mass = phi_q @ phi_k.sum(-2)[..., None]
    return phi_q @ (phi_k.transpose(-2, -1) @ v) / mass.clamp_min(torch.finfo(mass.dtype).tiny)


class PerformerAttention(nn.Module):
    """Kernel self-attention with positive random features (Choromanski et al., ICLR 2021), as in the authors' code.

    Args:
        dim: width of the tokens, a multiple of `num_heads`.
        num_heads: heads.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        proj_drop: dropout on the output.
        num_features: random features per head; twice the width of a head by default.
        normalize_queries: l2-normalise queries and keys before the features (the authors' latest code).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = False,
        proj_drop: float = 0.0,
        num_features: int | None = None,
        normalize_queries: bool = True,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, _head_dim(dim, num_heads)
        self.num_features = num_features or 2 * self.head_dim
        self.normalize_queries = normalize_queries
        projection = gaussian_projection(num_heads, self.head_dim, self.num_features, False, device)
        self.register_buffer("projection", projection.to(dtype=dtype))
        self.projection: Tensor
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, device=device, dtype=dtype)
        self.proj = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (batch, tokens, dim) to the same."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        with torch.autocast(x.device.type, enabled=False):
            dtype = torch.promote_types(v.dtype, torch.float32)
            output = performer_attention(
                q.to(dtype), k.to(dtype), v.to(dtype), self.projection.to(dtype), self.normalize_queries
            )
        output = output.to(v.dtype).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(output))

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
        self.num_heads, self.head_dim = num_heads, _head_dim(dim, num_heads)
        self.grid = grid
        tokens = math.prod(grid)
        self.position_scale = nn.Parameter(torch.ones(num_heads, tokens, tokens, device=device, dtype=dtype))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, device=device, dtype=dtype)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, grid: Grid | None = None) -> Tensor:
        """Tokens (batch, tokens, dim) on `grid` = (height, width), by default the layer's own, to the same."""
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
            maps = scale.unflatten(-1, self.grid)
            scale = F.interpolate(maps, size=grid, mode="bicubic", align_corners=False).flatten(-2).transpose(-2, -1)
        return scale

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, grid={self.grid}"


def _head_dim(dim: int, num_heads: int) -> int:
    for name, value in (("dim", dim), ("num_heads", num_heads)):
        solvers.checks.positive_int(name, value)
    if dim % num_heads:
        raise ValueError(f"dim={dim} is not a multiple of num_heads={num_heads}; change one of them")
    return dim // num_heads
