"""The attentions of the paper's comparison, by name, in the authors' settings."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from timm.layers import Attention
from torch import nn

import solvers
from vars_ode.attention import VARSAttention
from vars_ode.baselines import PerformerAttention, PositionScaledAttention
from vars_ode.convolutional import VARSConvAttention
from vars_ode.dictionaries import StaticDynamic
from vars_ode.fourier import Grid

ATTENTIONS = ("self-attention", "performer", "vars-s", "vars-d", "vars-sd")
REVISIONS = ("paper", "learned", "corrected")

# What the model states itself; everything else of a layer's constructor is an option.
_STATED = {"self", "dim", "num_heads", "attn_head_dim", "dim_out", "qkv_bias", "bias", "grid", "attn_drop", "proj_drop"}
_STATED |= {"dictionary", "num_features", "normalize_queries", "sparsity", "revision", "device", "dtype"}


@dataclass(frozen=True)
class AttentionChoice:
    """One attention for all the blocks of a model.

    Args:
        name: one of `ATTENTIONS`.
        revision: "paper" for the algorithm of the paper's time: ISTA, soft threshold, features of unnormalised
            queries. "learned" for the authors' later one: learned Gram factor, threshold and rate, gelu threshold.
            "corrected", for "vars-s" alone: step bound and filters without the authors' slips.
        normalize_queries: l2-normalise queries before the random features. None: in "learned", as the authors'
            latest code does.
        sparsity: lam. None: the authors' 0.3, and 3.5 for "vars-s".
        num_steps: Euler steps of dt = 1, that is the horizon. None: the authors' 5, and 3 for "vars-s".
        num_features: random features per head. None: twice the width of a head.
        qkv_bias: whether the projections have a bias.
        position_scaling: position-aware attention scaling, for "self-attention" alone.
        options: further keyword arguments of `VARSAttention` or `VARSConvAttention`.

    Settings that an attention has no use for play no part; options that it does not have are an error.
    """

    name: str = "self-attention"
    revision: str = "paper"
    normalize_queries: bool | None = None
    sparsity: float | None = None
    num_steps: int | None = None
    num_features: int | None = None
    qkv_bias: bool = True
    position_scaling: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in ATTENTIONS:
            raise ValueError(f"unknown attention {self.name!r}; choose one of {', '.join(map(repr, ATTENTIONS))}")
        if self.revision not in REVISIONS:
            raise ValueError(f"unknown revision {self.revision!r}; choose one of {', '.join(map(repr, REVISIONS))}")
        if self.revision == "corrected" and self.name != "vars-s":
            raise ValueError(f'revision="corrected" is for attention="vars-s", got attention={self.name!r}')
        if self.position_scaling and self.name != "self-attention":
            raise ValueError(
                f"position-aware scaling (the _plus models) multiplies softmax logits, got attention={self.name!r}; "
                'take attention="self-attention" or a model without _plus'
            )
        if self.num_steps is not None:
            solvers.checks.positive_int("num_steps", self.num_steps)
            if "t1" in self.options:
                raise ValueError(
                    "num_steps and t1 both state the horizon (num_steps steps of dt = 1); give one of them"
                )
        self._check_options()

    def _check_options(self) -> None:
        valid = valid_options(self.name)
        unknown = sorted(set(self.options) - set(valid))
        if unknown:
            given = ", ".join(map(repr, unknown))
            takes = f"takes {', '.join(valid)}" if valid else "takes none beside the model's own"
            raise ValueError(f"attention={self.name!r} has no option {given}; it {takes}")

    @property
    def normalizes_queries(self) -> bool:
        """Whether queries are l2-normalised before the random features."""
        return self.revision == "learned" if self.normalize_queries is None else self.normalize_queries

    def build(self, dim: int, num_heads: int, grid: Grid, attn_drop: float = 0.0, proj_drop: float = 0.0) -> nn.Module:
        """The attention of one block: `dim` wide, on a (height, width) grid of tokens."""
        if attn_drop and self.name in ("performer", "vars-s"):
            raise ValueError(
                f"attention={self.name!r} forms no attention map to drop weights of; leave attn_drop_rate 0"
            )
        bias = self.qkv_bias
        if self.name == "vars-s":
            return VARSConvAttention(dim, grid, bias=bias, proj_drop=proj_drop, **self._convolutional_options())
        if self.name == "performer":
            features, normalize = self.num_features, self.normalizes_queries
            return PerformerAttention(dim, num_heads, bias, proj_drop, features, normalize)
        if self.position_scaling:
            return PositionScaledAttention(dim, num_heads, grid, bias, attn_drop, proj_drop)
        if self.name == "self-attention":
            return Attention(dim, num_heads, qkv_bias=bias, attn_drop=attn_drop, proj_drop=proj_drop)
        dictionary = StaticDynamic(grid, num_prefix_tokens=0) if self.name == "vars-sd" else "dynamic"
        options = self._recurrent_options()
        return VARSAttention(
            dim,
            num_heads,
            qkv_bias=bias,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            dictionary=dictionary,
            **options,
        )

    def _convolutional_options(self) -> dict[str, Any]:
        defaults = {
            "revision": "corrected" if self.revision == "corrected" else "paper",
            "sparsity": 3.5 if self.sparsity is None else self.sparsity,
            "t1": float(self.num_steps or 3),
        }
        return {**defaults, **self.options}

    def _recurrent_options(self) -> dict[str, Any]:
        later = {"learned": "factor", "threshold": "gelu"} if self.revision == "learned" else {}
        defaults = {
            "num_features": self.num_features,
            "normalize_queries": self.normalizes_queries,
            "sparsity": 0.3 if self.sparsity is None else self.sparsity,
            "t1": float(self.num_steps or 5),
        }
        return {**later, **defaults, **self.options}


def valid_options(name: str) -> list[str]:
    """The further keyword arguments that an attention takes."""
    layer = {"vars-s": VARSConvAttention, "vars-d": VARSAttention, "vars-sd": VARSAttention}.get(name)
    if layer is None:
        return []
    names = inspect.signature(layer).parameters
    skipped = _STATED | {"qk_norm", "scale_norm", "gated", "norm_layer", "proj_bias"}
    return [parameter for parameter in names if parameter not in skipped]
