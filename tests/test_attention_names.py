"""Every name of `vars_ode.available_attentions()` gives the same layer wherever a name is read."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers import Attention
from timm.models.vision_transformer import ATTN_LAYERS
from torch import nn

import vars_ode
from vars_ode import PerformerAttention, VARSAttention, VARSConvAttention
from vars_ode.analysis.subjects import find_subject
from vars_ode.building import SMALL_MODEL, ModelSpec
from vars_ode.models import named_attention
from vars_ode.study.plan import Plan

NAMES = vars_ode.available_attentions()
EXPECTED: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "softmax": (Attention, {}),
    "performer": (PerformerAttention, {}),
    "vars-s": (VARSConvAttention, {}),
    "vars-d": (VARSAttention, {"dictionary": "Dynamic", "learned": False}),
    "vars-sd": (VARSAttention, {"dictionary": "StaticDynamic", "learned": False}),
    "vars-softmax": (VARSAttention, {"dictionary": "Softmax", "learned": False}),
    "vars-d-factor": (VARSAttention, {"dictionary": "Dynamic", "learned": "factor"}),
    "vars-d-coupling": (VARSAttention, {"dictionary": "Dynamic", "learned": "coupling"}),
    "vars-d-monotone": (VARSAttention, {"dictionary": "Dynamic", "learned": "monotone"}),
    "vars-d-dictionary": (VARSAttention, {"dictionary": "Dynamic", "learned": "dictionary"}),
    "vars-sd-factor": (VARSAttention, {"dictionary": "StaticDynamic", "learned": "factor"}),
    "vars-sd-coupling": (VARSAttention, {"dictionary": "StaticDynamic", "learned": "coupling"}),
    "vars-sd-monotone": (VARSAttention, {"dictionary": "StaticDynamic", "learned": "monotone"}),
    "vars-sd-dictionary": (VARSAttention, {"dictionary": "StaticDynamic", "learned": "dictionary"}),
}


def options(layer: nn.Module) -> dict[str, Any]:
    """All options of a layer but its grid, which is that of the model around it."""
    found: dict[str, Any] = {}
    if isinstance(layer, VARSAttention | VARSConvAttention):
        found |= {"field": layer.field, **layer.settings()}
    if isinstance(layer, VARSAttention):
        found |= {"dictionary": type(layer.dictionary_choice).__name__, "learned": layer.learned.name}
        found["orthogonal"] = getattr(layer.dictionary_choice, "orthogonal", None)
    if isinstance(layer, VARSConvAttention):
        found |= {"num_filters": layer.kernel.shape[1], "revision": layer.revision}
        found["initialization"] = layer.initialization
    dynamic = getattr(getattr(layer, "dictionary", None), "dynamic", getattr(layer, "dictionary", layer))
    found["normalize_queries"] = getattr(dynamic, "normalize_queries", None)
    found["features per width"] = getattr(dynamic, "num_features", 0) / getattr(layer, "head_dim", 1)
    return found


def first_attention(model: nn.Module) -> nn.Module:
    kinds = (Attention, PerformerAttention, VARSAttention, VARSConvAttention)
    return next(module for module in model.modules() if isinstance(module, kinds))


def from_class(name: str) -> nn.Module:
    return vars_ode.attention_layer(name)(64, num_heads=4)


def from_timm(name: str) -> nn.Module:
    return first_attention(timm.create_model(SMALL_MODEL, attn_layer=name))


def from_rvt(name: str) -> nn.Module:
    return first_attention(timm.create_model("rvt_tiny", attention=name, img_size=64, depths=(1, 1), num_classes=3))


def from_spec(name: str) -> nn.Module:
    return first_attention(ModelSpec(attention=name).build())


def from_rvt_spec(name: str) -> nn.Module:
    options = {"depths": (1, 1), "num_classes": 3}
    return first_attention(ModelSpec("rvt_tiny", name, img_size=64, model_options=options).build())


def from_plan(name: str) -> nn.Module:
    """With the options that a plan fixes for all of its models set back to the layer's own."""
    plan = Plan()
    layer = first_attention(plan.build(name, seed=0))
    fixed = plan.spec(name).attention_options
    own = from_class(name)
    if isinstance(layer, VARSAttention | VARSConvAttention):
        layer.configure(**{option: own.settings()[option] for option in fixed if option in layer.settings()})  # type: ignore[operator]
    if "num_features" in fixed:
        part = getattr(getattr(layer, "dictionary", None), "dynamic", getattr(layer, "dictionary", layer))
        assert part.num_features == plan.num_features
        part.num_features = 2 * layer.head_dim
    return layer


READERS: tuple[Callable[[str], nn.Module], ...] = (
    from_class,
    from_timm,
    from_rvt,
    from_spec,
    from_rvt_spec,
    from_plan,
)


def test_every_name_has_a_row() -> None:
    assert sorted(EXPECTED) == sorted(NAMES)


@pytest.mark.parametrize("spelling", [str, lambda name: name.replace("-", "_")], ids=["hyphen", "underscore"])
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_a_name_means_the_same_to_every_reader(
    name: str, reader: Callable[[str], nn.Module], spelling: Callable[[str], str]
) -> None:
    kind, expected = EXPECTED[name]
    layer = reader(spelling(name))
    assert isinstance(layer, kind)
    found = options(layer)
    assert found == options(from_class(name))
    assert {option: found[option] for option in expected} == expected


@pytest.mark.parametrize("name", [name for name in NAMES if named_attention(name).is_vars])
def test_the_command_line_takes_the_same_names(name: str) -> None:
    by_model = find_subject(name, None, None, None, 1, 0).model
    by_option = find_subject(None, name.replace("-", "_"), None, None, 1, 0).model
    for model in (by_model, by_option):
        layer = first_attention(model)
        assert type(layer).__name__ == EXPECTED[name][0].__name__
        assert options(layer) == options(from_class(name))


def test_self_attention_is_softmax() -> None:
    assert named_attention("self-attention") is named_attention("softmax")
    for spelling in ("self-attention", "self_attention"):
        assert ATTN_LAYERS[spelling] is ATTN_LAYERS["softmax"] is Attention
        assert isinstance(from_rvt(spelling), Attention)


def test_timm_has_no_name_of_ours_that_is_not_in_the_table() -> None:
    ours = {name.replace("_", "-") for name, layer in ATTN_LAYERS.items() if layer.__module__.startswith("vars_ode")}
    assert ours == set(NAMES) - {"softmax"}


def test_options_are_defaults_that_a_model_may_override() -> None:
    torch.manual_seed(0)
    layer = vars_ode.attention_layer("vars-d", sparsity=0.1, solver="rk4")(64, num_heads=4)
    built = first_attention(ModelSpec(attention="vars-d", attention_options={"sparsity": 0.1, "solver": "rk4"}).build())
    assert options(layer) == options(built)
    assert options(layer)["sparsity"] == 0.1
