"""VARS attention into a model that is built already, in place."""

import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from vars_ode.attention import VARSAttention
from vars_ode.configured import check_options
from vars_ode.conversion.contracts import is_convertible, vars_layer
from vars_ode.conversion.reasons import why_left_alone
from vars_ode.dictionaries import Softmax
from vars_ode.models import NamedAttention, available_attentions, named_attention
from vars_ode.models.construction import unwrapped

# One Euler step from zero without a threshold: with the softmax dictionary that is softmax attention.
SINGLE_STEP: dict[str, Any] = {"solver": "euler", "t1": 1.0, "sparsity": 0.0, "rate": 1.0, "initial": "zero"}
_SHOWN = 12


@dataclass(frozen=True)
class ConversionReport:
    """What `convert_attention` did; `print(report)` tells it.

    Attributes:
        attention: the name of the attention.
        converted: names of the modules that were replaced.
        left_alone: the other attention layers, with the reason.
        lossless: whether the model computes what it did before, to rounding.
        notes: what else there is to know.
    """

    attention: str
    converted: tuple[str, ...]
    left_alone: Mapping[str, str] = field(default_factory=dict)
    lossless: bool = False
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        change = "the outputs of the model stay as they were" if self.lossless else "the outputs of the model change"
        lines = [f"converted to {self.attention} ({change}): {_short(self.converted)}"]
        lines += [
            f"left alone, since {reason}: {_short(names)}" for reason, names in by_reason(self.left_alone).items()
        ]
        return "\n".join([*lines, *self.notes])


def convert_attention(
    model: nn.Module, attention: str = "vars-softmax", match: str | None = None, **options: Any
) -> ConversionReport:
    """Replace the self-attention of a model by VARS attention, in place, and keep its weights.

    With "vars-softmax" the new layers hold the very modules of the old ones, under the same names, and are set to the
    single step in which VARS is softmax attention (sparsity 0, rate 1, one Euler step of dt = 1 from zero), so the
    model computes what it did. `set_solver` and `anneal` go on from there.

    Args:
        model: a vision transformer of timm's, or any model around its layers `Attention`, `AttentionRope` and
            `EvaAttention`; also one that is wrapped by torch.compile or DistributedDataParallel.
        attention: "vars-softmax".
        match: a glob on module names, such as "blocks.[0-3].attn"; all layers by default.
        options: keyword arguments of `VARSAttention`, such as sparsity=0.1, t1=5.0.

    Returns:
        which modules were converted, which were left alone and why, and whether that was lossless.

    Raises:
        ValueError: nothing could be converted, with the reasons; an unknown attention or option. The model is then as
            it was.
    """
    chosen = _checked(attention, options)
    inner = unwrapped(model)
    found = dict(_attention_layers(inner))
    left_alone = {name: reason for name, (_, reason) in found.items() if reason is not None}
    wanted = {name: module for name, (module, reason) in found.items() if reason is None}
    chosen_names = [name for name in wanted if match is None or fnmatch.fnmatchcase(name, match)]
    if not chosen_names:
        raise ValueError(_nothing(inner, match, list(wanted), left_alone))
    left_alone |= {name: f"its name does not match {match!r}" for name in wanted if name not in chosen_names}
    layers = {name: new_layer(wanted[name], chosen, options) for name in chosen_names}
    replace_modules(inner, {wanted[name]: layer for name, layer in layers.items()})
    lossless = all(is_softmax_attention(layer) for layer in layers.values())
    return ConversionReport(chosen.name, tuple(layers), left_alone, lossless)


def new_layer(original: nn.Module, chosen: NamedAttention, options: Mapping[str, Any]) -> VARSAttention:
    """The layer that stands in for `original`."""
    defaults = SINGLE_STEP if chosen.options.get("dictionary") == "softmax" else {}
    return vars_layer(original, {**chosen.options, **defaults, **options})


def is_softmax_attention(layer: VARSAttention) -> bool:
    """Whether the layer is set to compute softmax attention."""
    return isinstance(layer.dictionary_choice, Softmax) and layer.code_is_drive()


def replace_modules(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Put other modules into the places of some, at all of their names."""
    places = [(name, module) for name, module in model.named_modules(remove_duplicate=False) if module in replacements]
    for name, module in places:
        model.set_submodule(name, replacements[module])


def by_reason(left_alone: Mapping[str, str]) -> dict[str, list[str]]:
    """Names by their reason, in order."""
    groups: dict[str, list[str]] = {}
    for name, reason in left_alone.items():
        groups.setdefault(reason, []).append(name)
    return groups


def convertible_attentions() -> tuple[str, ...]:
    """Names of attentions that `convert_attention` takes."""
    rows = [named_attention(name) for name in available_attentions()]
    return tuple(row.name for row in rows if row.layer is VARSAttention)


def _checked(attention: str, options: Mapping[str, Any]) -> NamedAttention:
    chosen = named_attention(attention)
    if chosen.layer is not VARSAttention:
        raise ValueError(
            f"attention={chosen.name!r} has no use for the weights of softmax attention; convert_attention takes "
            f"{', '.join(convertible_attentions())}"
        )
    check_options(f"attention={chosen.name!r}", options, chosen.option_names)
    return chosen


def _attention_layers(model: nn.Module) -> Iterator[tuple[str, tuple[nn.Module, str | None]]]:
    """(name, (module, why it is left alone)) of the attention layers; None for those that can be converted."""
    for name, module in model.named_modules():
        reason = None if is_convertible(module) else why_left_alone(module)
        if is_convertible(module) or reason is not None:
            if name == "":
                raise ValueError(
                    f"a {type(module).__name__} cannot be replaced in place, as it is the whole model; give the model "
                    "around it"
                )
            yield name, (module, reason)


def _nothing(model: nn.Module, match: str | None, names: list[str], left_alone: Mapping[str, str]) -> str:
    kind = type(model).__name__
    if names:
        return f"no attention layer of this {kind} that can be converted matches {match!r}; they are {_short(names)}"
    if not left_alone:
        return f"there is no attention layer in this {kind}; convertible models are listed by `vars-ode models`"
    lines = [f"  {_short(names)}: {reason}" for reason, names in by_reason(left_alone).items()]
    return "\n".join([f"no attention layer of this {kind} can be converted:", *lines])


def _short(names: Any) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
