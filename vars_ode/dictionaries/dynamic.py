"""VARS-D: templates that are functions of the input alone."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vars_ode.dictionaries.dictionary import (
    Dictionary,
    Reconstruction,
    Shape,
    TemplateReadOut,
    Templates,
)
from vars_ode.dictionaries.random_features import gaussian_projection, log_features, unit_columns


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
        return reconstruction(*self.templates(q, key_bias), v, dropout)

    def templates(self, q: Tensor, key_bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """(read, write) templates, each (batch, heads, tokens, m)."""
        return unit_columns(log_features(q, self.projection, self.normalize_queries), key_bias)

    def extra_repr(self) -> str:
        return f"num_features={self.num_features}, normalize_queries={self.normalize_queries}"


def reconstruction(read: Tensor, write: Tensor, v: Tensor, dropout: float) -> Reconstruction:
    """The problem for templates (batch, heads, tokens, m) and values (batch, heads, tokens, d)."""
    adjoint = write.transpose(-2, -1)
    return Reconstruction(adjoint @ v, lambda: adjoint @ write, TemplateReadOut(read, dropout))
