"""From a description to a model, and back: names of models and of attentions, options, and how layers are solved."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import nn

from vars_ode.checkpoints.plain import decode, encode
from vars_ode.configured import configured
from vars_ode.conversion import conversion_of, convert_layers
from vars_ode.dictionaries import StaticDynamic
from vars_ode.layer import SETTINGS
from vars_ode.models import RobustVisionTransformer, attention_layer, named_attention, place_layers, vars_layers
from vars_ode.models.comparison import differences
from vars_ode.models.construction import construct, construct_on_meta, on_meta, takes_attention_by_name, unwrapped
from vars_ode.models.reading import (
    Attention,
    is_argument,
    read_by_name,
    read_model,
    settings_of_layers,
)

SMALL_MODEL = "vit_nano_patch4_28"
_OF_LAYER = ("attn_head_dim", "gated")  # stated by models of timm's for other layers than these; theirs to set
_DTYPES = ("float64", "float32", "bfloat16", "float16")
_SHOWN = 3  # differences that a message names
_REFUSED = "this model cannot be described"


@dataclass(frozen=True)
class ModelSpec:
    """What it takes to build a model, without its weights.

    Attributes:
        model: a name of timm's, "rvt_tiny" among them; or of a class, "vision_transformer" or
            "robust_vision_transformer".
        attention: out of `vars_ode.available_attentions`; None for the model's own.
        attention_options: keyword arguments of the attention layer.
        img_size, in_chans, num_classes: of the model; its own where None.
        model_options: further keyword arguments of the model.
        layers: settings of VARS layers by module name, or by a glob such as "*" or "blocks.[0-3].attn", in order and
            after everything else: {"*": {"solver": RK4(), "t1": 5.0}}.
        others: layers with another attention, by module name: {"blocks.0.attn": ("performer", {"num_features": 8})}.
        conversion: attentions that the model's own layers are converted to once it is built, by a glob on their names:
            {"*": ("vars-softmax", {})}.
        dtype: of parameters and buffers in floating point, such as "bfloat16"; torch's default where None.
    """

    model: str = SMALL_MODEL
    attention: str | None = "softmax"
    attention_options: Mapping[str, Any] = field(default_factory=dict)
    img_size: int | tuple[int, int] | None = None
    in_chans: int | None = None
    num_classes: int | None = None
    model_options: Mapping[str, Any] = field(default_factory=dict)
    layers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    others: Mapping[str, Attention] = field(default_factory=dict)
    conversion: Mapping[str, Attention] = field(default_factory=dict)
    dtype: str | None = None

    @classmethod
    def of(cls, model: nn.Module) -> ModelSpec:
        """The description of a living model, read off its modules as they stand, and verified.

        Its description is built (without memory for weights) and compared with the model in all but the values of its
        weights. Not described are training mode, `requires_grad`, gradient checkpointing and hooks.

        Args:
            model: a `RobustVisionTransformer`, a VisionTransformer of timm's with any attention that has a name, or a
                model of timm's registry that `convert_attention` converted; also wrapped by torch.compile or
                DistributedDataParallel.

        Raises:
            ValueError: another kind of model, or one that differs from what its description builds; the message says
                where.
        """
        model = unwrapped(model)
        try:
            return cls._verified(cls(**read_model(model), dtype=_dtype(model)), model)
        except ValueError:
            if isinstance(model, RobustVisionTransformer) or not vars_layers(model):
                raise
            described = {**read_by_name(model), "conversion": conversion_of(model)}
        return cls._verified(cls(**described, dtype=_dtype(model)), model)

    @staticmethod
    def _verified(spec: ModelSpec, model: nn.Module) -> ModelSpec:
        """With the settings of the layers, if it builds the model's like; a ValueError otherwise."""
        try:
            rebuilt = spec.build_on_meta()
        except Exception as error:  # of whatever kind timm's constructors raise
            raise ValueError(f"{_REFUSED}: what was read off it builds no model ({error})") from error
        spec = replace(spec, layers=settings_of_layers(model) if vars_layers(rebuilt) else {})
        spec._configure(rebuilt)
        found = list(itertools.islice(differences(model, rebuilt), _SHOWN + 1))
        if found:
            more = "; and there is more" if len(found) > _SHOWN else ""
            raise ValueError(f"{_REFUSED}: {'; '.join(found[:_SHOWN])}{more}")
        return spec

    def build(self) -> nn.Module:
        """The model, with fresh weights from torch's global generator.

        Raises:
            ValueError: an unknown model or attention, or options that one of them does not have.
        """
        model = self._create(self._stated())
        for name, (attention, options) in self.others.items():
            other = replace(self, attention=attention, attention_options=options, layers={}, others={}).build()
            model.set_submodule(name, other.get_submodule(name))
        for match, (attention, options) in self.conversion.items():
            convert_layers(model, attention, match, options)
        place_layers(model)
        self._configure(model)
        return model if self.dtype is None else model.to(getattr(torch, self.dtype))

    def build_on_meta(self) -> nn.Module:
        """The model on torch's meta device: without memory for its weights, and without drawing random numbers."""
        with on_meta():
            return self.build()

    def updated(self, **hints: Any) -> ModelSpec:
        """With other arguments of the model, options of its attention, or settings (of all its layers)."""
        own = {name: hints.pop(name) for name in ("attention", "img_size", "in_chans", "num_classes") if name in hints}
        if "num_steps" in hints and self.layers:
            hints["t1"] = float(hints.pop("num_steps"))
        settings = {name: hints.pop(name) for name in SETTINGS if name in hints and self.layers}
        of_model = {name: value for name, value in hints.items() if is_argument(name, self.model, self.attention)}
        of_layer = {name: value for name, value in hints.items() if name not in of_model}
        layers = {layer: {**stated, **settings} for layer, stated in self.layers.items()}
        return replace(
            self,
            **own,
            attention_options={**self.attention_options, **of_layer},
            model_options={**self.model_options, **of_model},
            layers=layers,
        )

    def as_dict(self) -> dict[str, Any]:
        """In JSON's types; a ValueError for what has none, such as a solver that is registered under no name."""
        return {item.name: _encode_field(item.name, getattr(self, item.name)) for item in fields(self)}

    @classmethod
    def from_dict(cls, stored: Any) -> ModelSpec:
        """What `as_dict` made.

        Raises:
            ValueError: something else; the message says what.
        """
        if not isinstance(stored, dict):
            raise ValueError(f"the description of a model must be a mapping, got {stored!r}")
        unknown = sorted(stored.keys() - {item.name for item in fields(cls)})
        if unknown or not isinstance(stored.get("model"), str):
            raise ValueError(
                f"the description of a model has the entries {', '.join(item.name for item in fields(cls))}, a name "
                f"under 'model' among them; got {', '.join(map(str, stored))}"
            )
        return cls(**{name: _decode_field(name, value) for name, value in stored.items()})

    def _configure(self, model: nn.Module) -> None:
        for name, settings in self.layers.items():
            found = vars_layers(model, name)
            if not found:
                raise ValueError(
                    f"there are settings for {name}, but the VARS layers of {self.model} are "
                    f"{', '.join(vars_layers(model)) or 'none'}"
                )
            for layer in found.values():
                layer.configure(**settings)

    def _stated(self) -> dict[str, Any]:
        own = {"img_size": self.img_size, "in_chans": self.in_chans, "num_classes": self.num_classes}
        return {**self.model_options, **{name: value for name, value in own.items() if value is not None}}

    def _create(self, stated: dict[str, Any]) -> nn.Module:
        if self.attention is None:
            return construct(self.model, stated)
        if takes_attention_by_name(self.model):
            return construct(self.model, {**stated, "attention": self.attention, **self.attention_options})
        options = self._attention_options(stated)
        of_layer = {name: options.pop(name) for name in _OF_LAYER if name in options}
        layer = attention_layer(self.attention, **options)
        layer = configured(layer, of_layer) if of_layer else layer
        try:
            return construct(self.model, {**stated, "attn_layer": layer})
        except TypeError as error:
            raise ValueError(
                f"timm's {self.model} does not take these arguments ({error}); models that take attn_layer are plain "
                "vision transformers such as vit_tiny_patch16_224, or rvt_tiny"
            ) from error

    def _attention_options(self, stated: dict[str, Any]) -> dict[str, Any]:
        """With the grid and the prefix tokens of the model, where templates have places."""
        options = dict(self.attention_options)
        chosen = named_attention(str(self.attention))
        if chosen.name != "vars-s" and "static+dynamic" not in (
            options.get("dictionary"),
            chosen.options.get("dictionary"),
        ):
            return options
        plain = construct_on_meta(self.model, stated)
        grid = getattr(getattr(plain, "patch_embed", None), "grid_size", None)
        if grid is None:
            return options
        if chosen.name == "vars-s":
            return {"grid": tuple(grid), **options}
        prefix = getattr(plain, "num_prefix_tokens", None)
        return {"dictionary": StaticDynamic(tuple(grid), num_prefix_tokens=prefix), **options}


def _dtype(model: nn.Module) -> str | None:
    """The one dtype of all that is floating point; None where there are several."""
    found = {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()}
    name = str(found.pop()).removeprefix("torch.") if len(found) == 1 else None
    return name if name in _DTYPES else None


def _encode_field(name: str, value: Any) -> Any:
    if name in ("attention_options", "model_options"):
        return _encode_options(value, name)
    if name == "layers":
        return {layer: _encode_options(settings, layer) for layer, settings in value.items()}
    if name in ("others", "conversion"):
        return {layer: [other, _encode_options(options, layer)] for layer, (other, options) in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _encode_options(options: Mapping[str, Any], where: str) -> dict[str, Any]:
    return {name: encode(value, f"{where}.{name}") for name, value in options.items()}


def _decode_field(name: str, value: Any) -> Any:
    if name in ("attention_options", "model_options"):
        return _decode_options(value, name)
    if name == "layers":
        return {layer: _decode_options(settings, layer) for layer, settings in _mapping(value, name).items()}
    if name in ("others", "conversion"):
        return {layer: _decode_other(pair, layer) for layer, pair in _mapping(value, name).items()}
    value = tuple(value) if isinstance(value, list) else value
    _check_field(name, value)
    return named_attention(value).name if name == "attention" and value is not None else value


def _decode_options(value: Any, where: str) -> dict[str, Any]:
    return {name: decode(item) for name, item in _mapping(value, where).items()}


def _decode_other(pair: Any, where: str) -> Attention:
    if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
        raise ValueError(f"{where} must be an attention's name and its options, got {pair!r}")
    return pair[0], _decode_options(pair[1], where)


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not (isinstance(value, dict) and all(isinstance(key, str) for key in value)):
        raise ValueError(f"{where} must be a mapping from names, got {value!r}")
    return value


def _check_field(name: str, value: Any) -> None:
    """Whether a field without nesting is of its kind; None stands for the model's own."""
    size = value if isinstance(value, tuple) else (value,)
    whole = all(isinstance(side, int) and not isinstance(side, bool) for side in size)
    fits = {
        "model": isinstance(value, str),
        "attention": value is None or isinstance(value, str),
        "img_size": value is None or (whole and len(size) <= 2),
        "in_chans": value is None or (whole and not isinstance(value, tuple)),
        "num_classes": value is None or (whole and not isinstance(value, tuple)),
        "dtype": value is None or value in _DTYPES,
    }
    if not fits[name]:
        raise ValueError(f"{name} cannot be {value!r}")
