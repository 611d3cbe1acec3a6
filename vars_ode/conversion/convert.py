"""VARS attention into a model that is built already, in place."""

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from vars_ode.attention import VARSAttention
from vars_ode.configured import check_options
from vars_ode.conversion.contracts import is_convertible, vars_layer
from vars_ode.conversion.fitting import differs, fit_all
from vars_ode.conversion.places import grid_of, noise_images
from vars_ode.conversion.reasons import why_left_alone
from vars_ode.dictionaries import Softmax, StaticDynamic
from vars_ode.models import NamedAttention, available_attentions, named_attention
from vars_ode.models.calls import Call, recorded_calls
from vars_ode.models.construction import unwrapped

# One Euler step from zero without a threshold: with the softmax dictionary that is softmax attention.
SINGLE_STEP: dict[str, Any] = {"solver": "euler", "t1": 1.0, "sparsity": 0.0, "rate": 1.0, "initial": "zero"}
_NOISE = 4  # images of noise for a fit
_SHOWN = 12


@dataclass(frozen=True)
class ConversionReport:
    """What `convert_attention` did; `print(report)` tells it.

    Attributes:
        attention: the name of the attention.
        converted: names of the modules that were replaced.
        left_alone: the other attention layers, with the reason.
        lossless: whether the model computes what it did before, to rounding.
        differences: how far the output of each new layer is from that of the old one, |new - old| / |old|, on the
            images that the conversion was given or made; empty where it needed none.
        notes: what else there is to know.
    """

    attention: str
    converted: tuple[str, ...]
    left_alone: Mapping[str, str] = field(default_factory=dict)
    lossless: bool = False
    differences: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        change = "the outputs of the model stay as they were" if self.lossless else "the outputs of the model change"
        lines = [f"converted to {self.attention} ({change}): {_short(self.converted)}"]
        lines += [
            f"left alone, since {reason}: {_short(names)}" for reason, names in by_reason(self.left_alone).items()
        ]
        return "\n".join([*lines, *self.notes])


def convert_attention(
    model: nn.Module,
    attention: str = "vars-softmax",
    match: str | None = None,
    *,
    images: Tensor | None = None,
    **options: Any,
) -> ConversionReport:
    """Replace the self-attention of a model by VARS attention, in place, and keep its weights.

    With "vars-softmax" the new layers hold the very modules of the old ones, under the same names, and are set to the
    single step in which VARS is softmax attention (sparsity 0, rate 1, one Euler step of dt = 1 from zero), so the
    model computes what it did. `set_solver` and `anneal` go on from there.

    The others tie keys to queries. They get the rows of queries and values, and settings as everywhere; the outputs
    change. "vars-sd" reads its grid and the number of prefix tokens off the model. What a learned form adds (the matrix
    K, which starts at I) is fitted to the outputs of the old layers on `images`, by L-BFGS.

    Args:
        model: a vision transformer of timm's, or any model around its layers `Attention`, `AttentionRope` and
            `EvaAttention`; also one that is wrapped by torch.compile or DistributedDataParallel.
        attention: "vars-softmax", "vars-d", "vars-sd", or the latter two with a learned form.
        match: a glob on module names, such as "blocks.[0-3].attn"; all layers by default.
        images: input of the model, (batch, channels, height, width), for the fit and for measuring how far the new
            layers are from the old ones. A few are enough; noise of the model's input size where they are needed and
            not given.
        options: keyword arguments of `VARSAttention`, such as sparsity=0.1, t1=5.0.

    Returns:
        which modules were converted, which were left alone and why, and whether that was lossless.

    Raises:
        ValueError: nothing could be converted, with the reasons; an unknown attention or option; a model that does not
            run on the images. The model is then as it was.
    """
    chosen, inner = _checked(attention, options), unwrapped(model)
    found, originals = attention_layers(inner), _wanted(inner, match)
    has_places = chosen.options.get("dictionary") == "static+dynamic" and "dictionary" not in options
    is_learned = bool(chosen.options.get("learned"))
    calls: dict[str, Call] = {}
    if images is not None or has_places or is_learned:
        given = images if images is not None else noise_images(inner, _NOISE if is_learned else 1)
        calls, _ = recorded_calls(inner, originals, given)
    layers = {}
    for name, original in originals.items():
        places = {"dictionary": _static(inner, name, original, calls)} if has_places else {}
        layers[name] = new_layer(original, chosen, {**places, **options})
    on_meta = any(parameter.is_meta for parameter in inner.parameters())
    differences, notes = ({}, []) if on_meta else _compared(layers, calls, is_learned, images is None)
    replace_modules(inner, {originals[name]: layer for name, layer in layers.items()})
    left_alone = {
        name: reason or f"its name does not match {match!r}"
        for name, (_, reason) in found.items()
        if name not in layers
    }
    lossless = all(is_softmax_attention(layer) for layer in layers.values())
    return ConversionReport(chosen.name, tuple(layers), left_alone, lossless, differences, tuple(notes))


def convert_layers(
    model: nn.Module, attention: str, match: str | None, options: Mapping[str, Any]
) -> dict[str, VARSAttention]:
    """The same with options as they are, and nothing run or fitted; the new layers by name. For saved models."""
    chosen, inner = _checked(attention, options), unwrapped(model)
    originals = _wanted(inner, match)
    layers = {name: new_layer(original, chosen, options) for name, original in originals.items()}
    replace_modules(inner, {originals[name]: layer for name, layer in layers.items()})
    return layers


def _wanted(model: nn.Module, match: str | None) -> dict[str, nn.Module]:
    """The layers that are converted, at least one."""
    found = attention_layers(model)
    if "" in found:
        raise ValueError(
            f"a {type(model).__name__} cannot be replaced in place, as it is the whole model; give the model around it"
        )
    convertible = {name: module for name, (module, reason) in found.items() if reason is None}
    wanted = {name: each for name, each in convertible.items() if match is None or fnmatch.fnmatchcase(name, match)}
    if not wanted:
        left_alone = {name: reason for name, (_, reason) in found.items() if reason is not None}
        raise ValueError(_nothing(model, match, list(convertible), left_alone))
    return wanted


def _static(model: nn.Module, name: str, original: nn.Module, calls: Mapping[str, Call]) -> StaticDynamic:
    """The dictionary with the grid of the tokens that reach a layer."""
    if name not in calls:
        raise ValueError(
            f"{name} was not called for these images, so its grid is unknown; give dictionary=StaticDynamic(grid)"
        )
    try:
        grid, prefix = grid_of(model, original, calls[name].args[0].shape[1])
    except ValueError as error:
        raise ValueError(f"{name}: {error} by dictionary=StaticDynamic(...), or leave it out by match=") from error
    return StaticDynamic(grid, num_prefix_tokens=prefix)


def _compared(
    layers: Mapping[str, VARSAttention], calls: Mapping[str, Call], is_learned: bool, on_noise: bool
) -> tuple[dict[str, float], list[str]]:
    """(differences, notes) after the fit, if there is something to fit."""
    what = "noise" if on_noise else "the given images"
    if is_learned:
        fits = fit_all(layers, calls)
        start, end = (sum(pair[index] for pair in fits.values()) / max(len(fits), 1) for index in (0, 1))
        note = (
            f"K was fitted on {what}: the outputs of the layers differ by {end:.2f} of their norm, with I {start:.2f}"
        )
        return {name: after for name, (_, after) in fits.items()}, [note]
    if on_noise:
        return {}, []
    return {name: differs(layer, calls[name]) for name, layer in layers.items() if name in calls}, []


def attention_layers(model: nn.Module) -> dict[str, tuple[nn.Module, str | None]]:
    """The attention layers of a model by name, with the reason why one is left alone; None where it is converted."""
    found = {}
    for name, module in model.named_modules():
        reason = None if is_convertible(module) else why_left_alone(module)
        if reason is not None or is_convertible(module):
            found[name] = (module, reason)
    return found


def new_layer(original: nn.Module, chosen: NamedAttention, options: Mapping[str, Any]) -> VARSAttention:
    """The layer that stands in for `original`."""
    defaults = SINGLE_STEP if chosen.options.get("dictionary") == "softmax" else {}
    return vars_layer(original, {**chosen.options, **defaults, **options})


def is_softmax_attention(layer: nn.Module) -> bool:
    """Whether a VARS layer is set to compute softmax attention."""
    return isinstance(layer, VARSAttention) and isinstance(layer.dictionary_choice, Softmax) and layer.code_is_drive()


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
