"""VARS-D: templates that are functions of the input alone."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vars_ode.dictionaries.dictionary import (
    Dictionary,
    Reconstruction,
    ScaledReadOut,
    Shape,
    TemplateReadOut,
    Templates,
)
from vars_ode.dictionaries.random_features import gaussian_projection, log_features, raw_features, unit_columns


@dataclass(frozen=True)
class Dynamic(Dictionary):
    """Positive random features of the queries, which are used as keys too; columns of unit l2 norm over the tokens.

    Args:
        orthogonal: orthogonal instead of independent random directions, which lowers the variance of the kernel
            estimate. Off by default, as in the authors' code.
    """

    orthogonal: bool = False

    def build(self, shape: Shape, **factory: Any) -> "DynamicTemplates":
        return DynamicTemplates(shape, self.orthogonal, **factory)


class DynamicTemplates(Templates):
    """phi(q) = exp(q W - |q|^2/2) with a frozen Gaussian `projection` W, (heads, d, m); m = 2 d by default."""

    tied = True

    def __init__(
        self,
        shape: Shape,
        orthogonal: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features = shape.num_features or 2 * shape.head_dim
        self.num_templates = self.num_features
        self.normalize_queries = shape.normalize_queries
        self.orthogonal = orthogonal
        projection = gaussian_projection(shape.num_heads, shape.head_dim, self.num_features, orthogonal, device)
        self.register_buffer("projection", projection.to(dtype=dtype))
        self.projection: Tensor

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        key_bias: Tensor | None = None,
        pair_mask: Tensor | None = None,
        dropout: float = 0.0,
    ) -> Reconstruction:
        if key_bias is None:
            return scaled_reconstruction(self.raw_templates(q), v, dropout)
        return reconstruction(*self.templates(q, key_bias), v, dropout)

    def raw_templates(self, q: Tensor) -> Tensor:
        """Templates without a mask, whose columns are not yet of unit norm: (batch, heads, tokens, m)."""
        return raw_features(log_features(q, self.projection, self.normalize_queries))

    def templates(self, q: Tensor, key_bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """(read, write) templates, each (batch, heads, tokens, m)."""
        return unit_columns(log_features(q, self.projection, self.normalize_queries), key_bias)

    def extra_repr(self) -> str:
        return f"num_features={self.num_features}, normalize_queries={self.normalize_queries}"


def reconstruction(read: Tensor, write: Tensor, v: Tensor, dropout: float) -> Reconstruction:
    """The problem for templates (batch, heads, tokens, m) and values (batch, heads, tokens, d)."""
    adjoint = write.transpose(-2, -1)
    return Reconstruction(adjoint @ v, lambda: adjoint @ write, TemplateReadOut(read, dropout))


def scaled_reconstruction(raw: Tensor, v: Tensor, dropout: float, static: Tensor | None = None) -> Reconstruction:
    """The same for templates (E D^-1, S) with D the column norms of E, which are not divided out.

    With K = E^T E the squared norms are the diagonal of K, and only what is small is divided: the Gram, the drive, and
    in the read-out the code. The product S^T S is the same for all images.

    Args:
        raw: E, (batch, heads, tokens, m).
        v: values, (batch, heads, tokens, d).
        dropout: of the read-out.
        static: S, of unit columns, (1, heads, tokens, m); None for none.
    """
    adjoint = raw.mT
    kernel = adjoint @ raw
    scale = kernel.diagonal(dim1=-2, dim2=-1).rsqrt()[..., None]
    drive, gram = scale * (adjoint @ v), kernel * (scale * scale.mT)
    if static is None:
        return Reconstruction(drive, gram, ScaledReadOut(raw, scale, dropout=dropout))
    batch = (len(raw), -1, -1, -1)
    of_static = (static.mT @ static).expand(batch)
    static = static.expand(batch).contiguous()  # once, for three products
    mixed = scale * (adjoint @ static)
    gram = torch.cat([torch.cat([gram, mixed], -1), torch.cat([mixed.mT, of_static], -1)], -2)
    drive = torch.cat([drive, static.mT @ v], -2)
    return Reconstruction(drive, gram, ScaledReadOut(raw, scale, static, dropout))
