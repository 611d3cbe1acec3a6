"""The base classes of dictionaries: from queries, keys and values to a sparse reconstruction problem.

A `Dictionary` is a small frozen dataclass without parameters, like a solver: a layer takes it by name or as an object,
and builds its own `Templates` from it, the module with the parameters.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vars_ode.representation import tensor_repr


class Shape(NamedTuple):
    """What a dictionary has to know of the layer."""

    num_heads: int
    head_dim: int
    num_features: int | None
    normalize_queries: bool


class ReadOut(ABC):
    """The linear map from the code back to the tokens."""

    @abstractmethod
    def __call__(self, code: Tensor) -> Tensor:
        """(batch, heads, m, d) -> (batch, heads, tokens, d)."""


@dataclass(frozen=True)
class TemplateReadOut(ReadOut):
    """Phi a, for templates (batch, heads, tokens, m)."""

    templates: Tensor
    dropout: float = 0.0

    __repr__ = tensor_repr

    def __call__(self, code: Tensor) -> Tensor:
        templates = F.dropout(self.templates, self.dropout) if self.dropout else self.templates
        return templates @ code


@dataclass(frozen=True)
class ScaledReadOut(ReadOut):
    """Phi a, for templates E D^-1 that are not formed: dividing the code costs less than dividing the templates.

    Attributes:
        raw: E, (batch, heads, tokens, m), of any column norms.
        scale: 1 over these norms, the diagonal of D^-1, (batch, heads, m, 1).
        static: further templates, of unit norms, whose codes come last; the same shape as `raw`. None for none.
        dropout: probability for the entries.
    """

    raw: Tensor
    scale: Tensor
    static: Tensor | None = None
    dropout: float = 0.0

    __repr__ = tensor_repr

    @property
    def templates(self) -> Tensor:
        """Phi, formed: (batch, heads, tokens, m)."""
        unit = self.raw * self.scale.mT
        return unit if self.static is None else torch.cat([unit, self.static], -1)

    def __call__(self, code: Tensor) -> Tensor:
        raw, static = self._dropped(self.raw), self.static
        if static is None:
            return raw @ (self.scale * code)
        count = raw.shape[-1]
        return raw @ (self.scale * code[..., :count, :]) + self._dropped(static) @ code[..., count:, :]

    def _dropped(self, templates: Tensor) -> Tensor:
        return F.dropout(templates, self.dropout) if self.dropout else templates


class Reconstruction:
    """The reconstruction problem of one layer and input.

    Args:
        drive: b, (batch, heads, m, d).
        gram: G, (batch, heads, m, m), or a function that forms it: a single step from zero has no use for it.
        read_out: code -> output.
    """

    def __init__(self, drive: Tensor, gram: Tensor | Callable[[], Tensor], read_out: ReadOut) -> None:
        self.drive, self.read_out = drive, read_out
        self._gram = gram

    @property
    def gram(self) -> Tensor:
        """G, formed at its first use."""
        if not isinstance(self._gram, Tensor):
            self._gram = self._gram()
        return self._gram


class Templates(nn.Module, ABC):
    """The module of one layer that states the problem; it holds the parameters of the templates, if any."""

    tied: bool  # whether queries are used as keys: the layer then projects to (qk, v) instead of (q, k, v)
    num_templates: int | None  # m, or None if it is the number of tokens
    takes_pair_mask: ClassVar[bool] = False  # whether masks may differ between queries
    takes_grid: ClassVar[bool] = False  # whether `forward` has an argument `grid`

    @abstractmethod
    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        key_bias: Tensor | None = None,
        pair_mask: Tensor | None = None,
        dropout: float = 0.0,
    ) -> Reconstruction:
        """State the problem.

        Args:
            q, k, v: (batch, heads, tokens, d), in float32 at least.
            key_bias: additive, (batch or 1, heads or 1, 1, tokens): the template entries of a token are scaled by
                exp(key_bias), so -inf masks the token.
            pair_mask: a mask that differs between queries, (..., tokens, tokens), boolean or additive; given only where
                `takes_pair_mask`.
            dropout: probability for entries of the read-out.

        With `takes_grid` there is one more argument, `grid`: (height, width) of the last tokens, None if unknown.
        """


class Dictionary(ABC):
    """The choice of a dictionary. Subclasses are frozen dataclasses, registered by name."""

    @abstractmethod
    def build(self, shape: Shape, **factory: Any) -> Templates:
        """New templates for a layer; `factory` holds device and dtype."""
