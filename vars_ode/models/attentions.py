"""The table of attention names, which RVT, timm's `attn_layer=`, studies and the command line share.

A name is that of a layer, with the suffix of a learned form if it has one: "vars-sd", "vars-sd-factor". Hyphens and
underscores are equivalent.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from timm.layers import Attention
from timm.models import register_notrace_module
from timm.models.vision_transformer import ATTN_LAYERS
from torch import nn

import solvers
from vars_ode.attention import VARSAttention
from vars_ode.baselines import PerformerAttention
from vars_ode.configured import check_options, configured, option_names
from vars_ode.convolutional import VARSConvAttention
from vars_ode.learned import LEARNED_FORMS

# Arguments that the model passes to a layer. Everything else of a layer's constructor is an option.
STATED_BY_MODEL = frozenset(
    {"num_heads", "attn_head_dim", "dim_out", "qkv_bias", "bias", "proj_bias", "qk_norm", "scale_norm", "gated"}
    | {"attn_drop", "proj_drop", "norm_layer", "device", "dtype"}
)


@dataclass(frozen=True)
class NamedAttention:
    """A row of the table.

    Attributes:
        name: as in `available_attentions`.
        layer: the class of the layer.
        options: keyword arguments of its constructor that belong to the name.
    """

    name: str
    layer: type[nn.Module]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def option_names(self) -> list[str]:
        """The options that the layer takes, without those that the name or the model determines."""
        fixed = STATED_BY_MODEL | {"learned"}  # the name says it
        return [] if self.layer is Attention else [name for name in option_names(self.layer) if name not in fixed]

    @property
    def is_vars(self) -> bool:
        """Whether it has a solver."""
        return issubclass(self.layer, VARSAttention | VARSConvAttention)


def _table() -> dict[str, NamedAttention]:
    rows = [
        NamedAttention("softmax", Attention),
        NamedAttention("performer", PerformerAttention),
        NamedAttention("vars-s", VARSConvAttention),
        NamedAttention("vars-d", VARSAttention, {"dictionary": "dynamic"}),
        NamedAttention("vars-sd", VARSAttention, {"dictionary": "static+dynamic"}),
        NamedAttention("vars-softmax", VARSAttention, {"dictionary": "softmax"}),
    ]
    rows += [
        NamedAttention(f"{base.name}-{form}", base.layer, {**base.options, "learned": form})
        for base in rows
        if base.name in ("vars-d", "vars-sd")
        for form in LEARNED_FORMS
    ]
    return {row.name: row for row in rows}


_ATTENTIONS = _table()
_ALIASES = {"self-attention": "softmax"}


def available_attentions() -> tuple[str, ...]:
    """The names, without the alias "self-attention" of "softmax"."""
    return tuple(_ATTENTIONS)


def named_attention(name: str) -> NamedAttention:
    """The row of the table; a ValueError that suggests the closest name for an unknown one."""
    found = name.replace("_", "-").lower() if isinstance(name, str) else name
    found = _ALIASES.get(found, found)
    solvers.checks.one_of("attention", found, (*_ATTENTIONS, *_ALIASES))
    return _ATTENTIONS[found]


def attention_layer(name: str, **options: Any) -> type[nn.Module]:
    """The layer's class, with the options as its defaults, for timm's `attn_layer=`.

    Args:
        name: out of `available_attentions`.
        options: keyword arguments of the layer, such as solver="rk4"; `NamedAttention.option_names` lists them.

    Raises:
        ValueError: an unknown name, or an option that the layer does not have.
    """
    chosen = named_attention(name)
    check_options(f"attention={chosen.name!r}", options, chosen.option_names)
    merged = {**chosen.options, **options}
    return configured(chosen.layer, merged) if merged else chosen.layer


def register_with_timm() -> None:
    """Make the names, with hyphens and with underscores, available as timm's `attn_layer=`."""
    for name in (*_ATTENTIONS, *_ALIASES):
        for spelling in (name, name.replace("-", "_")):
            ATTN_LAYERS[spelling] = attention_layer(name)
    for layer in (VARSAttention, VARSConvAttention, PerformerAttention):  # torch.fx takes them whole, as checks of
        register_notrace_module(layer)  # shapes and loops over steps cannot be traced


register_with_timm()
