"""Which of timm's attention layers a VARS layer can stand in for, and how one is made of such a layer.

Three contracts are known. A plain layer projects tokens to (q, k, v) by `qkv`. A rotary one rotates queries and keys
behind the prefix tokens, and may have three projections instead, or biases of their own for queries and values.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from timm.layers import Attention, AttentionRope
from timm.models.convit import MHSA
from timm.models.eva import EvaAttention
from timm.models.metaformer import Attention as MetaFormerAttention
from torch import Tensor, nn

from vars_ode import dictionaries
from vars_ode.attention import VARSAttention
from vars_ode.rotary import VARSRotaryAttention

# Parts of the original that a layer takes over; those that a class lacks stay as `VARSAttention` has them.
_SHARED = frozenset({"q_norm", "attn_drop", "norm", "gate", "proj", "proj_drop"})
_OF_KEYS = frozenset({"qkv", "q_proj", "k_proj", "v_proj", "q_bias", "v_bias", "k_norm"})


def is_convertible(module: nn.Module) -> bool:
    """Whether a module is an attention layer of a known contract; subclasses may compute something else."""
    return type(module) in _CONTRACTS


def vars_layer(original: nn.Module, options: Mapping[str, Any]) -> VARSAttention:
    """A VARS layer made of the very modules and parameters of an attention layer, so nothing is copied.

    Dictionaries with tied keys take the rows of queries and of values in a new `qkv`.

    Args:
        original: a layer for which `is_convertible` holds.
        options: keyword arguments of `VARSAttention` that are none of timm's.

    Raises:
        ValueError: invalid options, or projections that are no `torch.nn.Linear`, where rows have to be taken.
    """
    layer = _CONTRACTS[type(original)](original, dict(options))
    if layer.dictionary.tied:
        _take_rows(layer, original)
    _adopt(layer, original, _SHARED if layer.dictionary.tied else _SHARED | _OF_KEYS)
    layer.training = original.training
    for added in (layer.dictionary, layer.learned):
        added.train(original.training)
    return layer


def _plain(original: Any, options: dict[str, Any]) -> VARSAttention:
    dim = _width(original.qkv)
    return VARSAttention(
        dim,
        original.num_heads,
        getattr(original, "head_dim", dim // original.num_heads),
        qkv_bias=getattr(original.qkv, "bias", None) is not None,
        **_place(original, options),
    )


def _rotary(original: Any, options: dict[str, Any]) -> VARSRotaryAttention:
    fused = original.qkv is not None
    query, key = (original.qkv, original.qkv) if fused else (original.q_proj, original.k_proj)
    separate_bias = getattr(original, "q_bias", None) is not None
    return VARSRotaryAttention(
        _width(query),
        original.num_heads,
        attn_head_dim=original.head_dim,
        num_prefix_tokens=original.num_prefix_tokens,
        rotate_half=getattr(original, "rotate_half", False),
        qkv_fused=fused,
        qkv_bias=getattr(query, "bias", None) is not None or separate_bias,
        key_bias=getattr(key, "bias", None) is not None,
        num_kv_heads=getattr(original, "num_kv_heads", original.num_heads),
        **_place(original, options),
    )


_CONTRACTS: dict[type[nn.Module], Callable[[Any, dict[str, Any]], VARSAttention]] = {
    Attention: _plain,
    MetaFormerAttention: _plain,
    MHSA: _plain,
    AttentionRope: _rotary,
    EvaAttention: _rotary,
}


def _width(projection: nn.Module) -> int:
    """Of the tokens; a ValueError for what does not tell it."""
    width = getattr(projection, "in_features", None)
    if not isinstance(width, int):
        raise ValueError(
            f"a projection of an attention layer is a {type(projection).__name__} without in_features, so the width of "
            "the tokens is unknown; convert the model before its projections are replaced"
        )
    return width


def _place(original: nn.Module, options: dict[str, Any]) -> dict[str, Any]:
    """With the device and dtype of new parameters; the softmax dictionary has none, and the others are taken over."""
    weight = next(original.parameters())
    keeps_all = isinstance(dictionaries.get(options["dictionary"]), dictionaries.Softmax)
    return {**options, "device": "meta" if keeps_all else weight.device, "dtype": weight.dtype}


def _adopt(layer: nn.Module, original: nn.Module, names: frozenset[str]) -> None:
    """In the original's order, by which optimizers number parameters."""
    own = {**dict(original.named_parameters(recurse=False)), **dict(original.named_children())}
    for name, part in own.items():
        if name in names:
            delattr(layer, name)
            setattr(layer, name, part)


@torch.no_grad()
def _take_rows(layer: VARSAttention, original: Any) -> None:
    """Fill `qkv` of (qk, v) with the rows of queries and values."""
    queries, values = _rows(original, layer.attn_dim)
    biased = queries[1] is not None or values[1] is not None
    for index, target in enumerate((layer.qkv.weight, layer.qkv.bias if biased else None)):
        if target is not None:
            parts = [rows[index] for rows in (queries, values)]
            zeros = torch.zeros_like(target[: layer.attn_dim])
            target.copy_(torch.cat([zeros if part is None else part for part in parts]))
    for parameter in layer.qkv.parameters():
        parameter.requires_grad_(any(own.requires_grad for own in original.parameters()))


Rows = tuple[Tensor, Tensor | None]


def _rows(original: Any, attn_dim: int) -> tuple[Rows, Rows]:
    """(weight, bias) of the projections to queries and to values."""
    names = ("qkv",) if getattr(original, "qkv", None) is not None else ("q_proj", "v_proj")
    linear = [getattr(original, name) for name in names]
    for name, projection in zip(names, linear, strict=True):
        if type(projection) is not nn.Linear:
            raise ValueError(
                f"rows for queries and values are taken from a torch.nn.Linear, but {name} is a "
                f"{type(projection).__name__}; convert the model before it is adapted or quantised, or take "
                'attention="vars-softmax", which keeps the projections as they are'
            )
    if len(linear) == 1:
        weight, bias = linear[0].weight, linear[0].bias
        query = (weight[:attn_dim], bias[:attn_dim] if bias is not None else getattr(original, "q_bias", None))
        value = (weight[-attn_dim:], bias[-attn_dim:] if bias is not None else getattr(original, "v_bias", None))
        return query, value
    q, v = linear
    groups = original.num_heads // getattr(original, "num_kv_heads", original.num_heads)
    return (q.weight, q.bias), (_per_head(v.weight, groups, original), _per_head(v.bias, groups, original))


def _per_head(rows: Any, groups: int, original: Any) -> Any:
    """Rows of grouped heads, once per head of queries."""
    if rows is None or groups == 1:
        return rows
    return rows.unflatten(0, (-1, original.head_dim)).repeat_interleave(groups, dim=0).flatten(0, 1)
