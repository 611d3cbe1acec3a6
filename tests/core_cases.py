"""What the tests of the attention core share: random reconstruction problems, and a row per dictionary."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vars_ode import Dynamic, ReconstructionArgs, Softmax, StaticDynamic, VARSAttention
from vars_ode.dictionaries import Dictionary

DIM, HEADS, GRID = 16, 2, (3, 4)
TOKENS = math.prod(GRID)


@dataclass(frozen=True)
class DictionaryCase:
    """One row of the conformance table: a registered dictionary and what is true of it.

    Attributes:
        name: as registered.
        choice: an object for tokens on `GRID`.
        tied: queries serve as keys.
        fixed_size: the number of templates does not depend on the input, so that there are learned forms.
        positional: templates depend on positions, so that permuting or deleting tokens changes the result.
        plus: width of the Gram for a layer with `num_features` m, as a multiple of m; None for one per token.
    """

    name: str
    choice: Dictionary
    tied: bool = True
    fixed_size: bool = True
    positional: bool = False
    plus: int | None = 1

    def layer(self, **options: Any) -> VARSAttention:
        """A layer of 16 channels and two heads, the same at every call."""
        torch.manual_seed(1)
        settings: dict[str, Any] = {"dim": DIM, "num_heads": HEADS, "qkv_bias": True, "dictionary": self.choice}
        return VARSAttention(**{**settings, **options})


DICTIONARIES = (
    DictionaryCase("dynamic", Dynamic()),
    DictionaryCase("dynamic", Dynamic(orthogonal=True)),
    DictionaryCase("static+dynamic", StaticDynamic(grid=GRID), positional=True, plus=2),
    DictionaryCase("softmax", Softmax(), tied=False, fixed_size=False, plus=None),
)
FIXED_SIZE = tuple(case for case in DICTIONARIES if case.fixed_size)
TEMPLATES = ("gaussian", "coherent", "orthonormal", "duplicate")


def case_id(case: Any) -> str:
    return repr(case.choice) if isinstance(case, DictionaryCase) else str(case)


def templates(kind: str, batch: int, tokens: int, m: int) -> Tensor:
    """Templates of unit columns in float64, (batch, tokens, m)."""
    phi = torch.randn(batch, tokens, m, dtype=torch.float64)
    if kind == "orthonormal":
        return torch.linalg.qr(phi).Q
    if kind == "coherent":  # positive, as random features are: |G|_2 is not far below m
        phi = (0.5 * phi).exp()
    if kind == "duplicate":  # a singular Gram
        phi[..., m // 2 :] = phi[..., : m - m // 2]
    return phi / phi.norm(dim=-2, keepdim=True)


def lasso_problem(
    kind: str = "gaussian", batch: int = 2, tokens: int = 12, m: int = 6, d: int = 3, sparsity: float = 0.3
) -> tuple[Tensor, Tensor, ReconstructionArgs]:
    """(templates, values, args) in float64 with the largest rate that descends, 1 / |G|_2."""
    phi = templates(kind, batch, tokens, m)
    values = torch.randn(batch, tokens, d, dtype=torch.float64)
    gram = phi.mT @ phi
    rate = 1 / torch.linalg.matrix_norm(gram, 2)[..., None, None]
    return phi, values, ReconstructionArgs(phi.mT @ values, gram, rate, gram.new_tensor(sparsity))


def tokens(batch: int = 2, count: int = TOKENS, dtype: torch.dtype = torch.float32) -> Tensor:
    """Inputs (batch, count, 16), the same at every call."""
    return torch.randn(batch, count, DIM, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)


def key_mask(kept: int, count: int = TOKENS) -> Tensor:
    """Boolean key mask (1, 1, 1, count): the first `kept` tokens take part."""
    return (torch.arange(count) < kept)[None, None, None]
