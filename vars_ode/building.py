"""From a description to a model: names of models and of attentions, their options, and how each layer is solved."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from torch import nn

import vars_ode.models  # noqa: F401  (registers models and attentions with timm)
from vars_ode.dictionaries import StaticDynamic
from vars_ode.models import attention_layer, named_attention, vars_layers

SMALL_MODEL = "vit_nano_patch4_28"


@dataclass(frozen=True)
class ModelSpec:
    """What it takes to build a model, without its weights.

    Attributes:
        model: a name of timm's, "rvt_tiny" among them.
        attention: out of `vars_ode.available_attentions`; None for the model's own.
        attention_options: keyword arguments of the attention layer.
        img_size, in_chans, num_classes: of the model; its own where None.
        model_options: further keyword arguments of the model.
        layers: settings of layers by module name, which come last: {"blocks.0.attn": {"solver": RK4(), "t1": 5.0}}.
    """

    model: str = SMALL_MODEL
    attention: str | None = "softmax"
    attention_options: Mapping[str, Any] = field(default_factory=dict)
    img_size: int | tuple[int, int] | None = None
    in_chans: int | None = None
    num_classes: int | None = None
    model_options: Mapping[str, Any] = field(default_factory=dict)
    layers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """The model, with fresh weights from torch's global generator.

        Raises:
            ValueError: an unknown model or attention, or options that one of them does not have.
        """
        _check_model(self.model)
        model = self._create(self._stated())
        found = vars_layers(model)
        unknown = [name for name in self.layers if name not in found]
        if unknown:
            raise ValueError(
                f"there are settings for {', '.join(unknown)}, but the VARS layers of {self.model} are "
                f"{', '.join(found) or 'none'}"
            )
        for name, settings in self.layers.items():
            found[name].configure(**settings)
        return model

    def _stated(self) -> dict[str, Any]:
        own = {"img_size": self.img_size, "in_chans": self.in_chans, "num_classes": self.num_classes}
        return {**self.model_options, **{name: value for name, value in own.items() if value is not None}}

    def _create(self, stated: dict[str, Any]) -> nn.Module:
        if self.attention is None:
            return timm.create_model(self.model, pretrained=False, **stated)
        if self.model.startswith("rvt_"):  # these take attentions by name
            options = {**stated, **self.attention_options}
            return timm.create_model(self.model, pretrained=False, attention=self.attention, **options)
        layer = attention_layer(self.attention, **self._attention_options(stated))
        try:
            return timm.create_model(self.model, pretrained=False, attn_layer=layer, **stated)
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
        with torch.device("meta"):
            plain = timm.create_model(self.model, pretrained=False, **stated)
        grid = getattr(getattr(plain, "patch_embed", None), "grid_size", None)
        if grid is None:
            return options
        if chosen.name == "vars-s":
            return {"grid": tuple(grid), **options}
        prefix = getattr(plain, "num_prefix_tokens", None)
        return {"dictionary": StaticDynamic(tuple(grid), num_prefix_tokens=prefix), **options}


def _check_model(name: str) -> None:
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f" (did you mean {' or '.join(close)}?)" if close else ""
        raise ValueError(f"there is no model {name!r}{hint}; name a model of timm.list_models()")
