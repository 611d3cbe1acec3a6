"""What is stored of a model beside its weights, and the model that it builds again."""

from collections.abc import Mapping
from typing import Any

import torch
from timm.models._pretrained import filter_pretrained_cfg
from torch import Tensor, nn

import solvers
from vars_ode._version import __version__
from vars_ode.building import ModelSpec
from vars_ode.checkpoints.files import CheckpointError
from vars_ode.checkpoints.filling import check_fit, share_parameters, shared_parameters
from vars_ode.checkpoints.plain import decode, encode
from vars_ode.conversion import is_softmax_attention
from vars_ode.models import attention_layer, vars_layers
from vars_ode.models.comparison import differences
from vars_ode.models.construction import construct_on_meta, takes_attention_by_name, unwrapped
from vars_ode.models.reading import EVERY

FORMAT_VERSION = 1
_GIVE = "give attn_layer=vars_ode.attention_layer(name, **options)"
_CONVERT = "which vars_ode.load_pretrained does by itself"
_BY_CLASS = {  # the entry points whose defaults are those of the class
    "vision_transformer": "vit_base_patch16_224",
    "robust_vision_transformer": "rvt_tiny",
}


def describe(model: nn.Module) -> dict[str, Any]:
    """A model in JSON's types: versions, `ModelSpec`, which parameters are shared, timm's data configuration.

    Raises:
        ValueError: it cannot be described; see `ModelSpec.of`.
    """
    spec, model = ModelSpec.of(model), unwrapped(model)
    data = _data_config(model)
    return {
        "format_version": FORMAT_VERSION,
        "version": __version__,
        "spec": spec.as_dict(),
        "shared": shared_parameters(model),
        "pretrained_cfg": None if data is None else encode(data, "pretrained_cfg"),
    }


def _data_config(model: nn.Module) -> dict[str, Any] | None:
    """What timm knows of a model's input and classes, without where its first weights came from."""
    known = getattr(model, "pretrained_cfg", None)
    if not isinstance(known, dict):
        return None
    kept = filter_pretrained_cfg(known, remove_source=True, remove_null=True)
    return {key: value for key, value in kept.items() if key != "state_dict"}


def spec_of(description: Mapping[str, Any], where: str) -> ModelSpec:
    """The specification in a description; a CheckpointError that names the file `where` for anything else."""
    found = description.get("format_version")
    if found != FORMAT_VERSION or isinstance(found, bool):
        raise CheckpointError(
            f"{where} is of format version {found!r}, and vars-ode {__version__} reads {FORMAT_VERSION}; "
            f"it was written by vars-ode {description.get('version')!r}, so install that"
        )
    try:
        return ModelSpec.from_dict(description.get("spec"))
    except ValueError as error:
        raise CheckpointError(f"{where} describes no model that can be built here: {error}") from error


def build(spec: ModelSpec, where: str, state: dict[str, Tensor] | None = None) -> nn.Module:
    """The model, with weights that are nobody's: torch's random numbers stay as they are.

    Args:
        spec: what is built.
        where: the file, for the messages.
        state: weights that have to fit, which is found out before the model takes memory.

    Raises:
        CheckpointError: it builds no model, or one that the weights do not fit.
    """
    try:
        rebuilt = spec.build_on_meta()
    except Exception as error:  # of whatever kind timm's constructors raise
        reason = f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{where} describes no model that can be built here: {reason}") from error
    if state is not None:
        check_fit(rebuilt, state, where, "description and weights are of different models, so get both again")
    with torch.random.fork_rng(devices=[]):
        return spec.build()


def restore(description: Mapping[str, Any], state: dict[str, Tensor], where: str) -> nn.Module:
    """The model of a description and a state dict, in evaluation mode; all is checked before anything is filled.

    Raises:
        CheckpointError: the description builds no model, or the weights do not fit it.
    """
    model = build(spec_of(description, where), where, state)
    fill(model, description, state, where)
    return model


def fill(model: nn.Module, description: Mapping[str, Any], state: dict[str, Tensor], where: str) -> None:
    """Put weights, in their own precision, into a freshly built model, and what else a description knows."""
    shared, data = description.get("shared") or {}, description.get("pretrained_cfg")
    try:
        data = decode(data)
        names = dict(model.named_parameters(remove_duplicate=False))
        if not all(names[name].shape == names[other].shape for name, other in shared.items()):
            raise ValueError("shared parameters of different shapes")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{where} holds a damaged description: {type(error).__name__}: {error}") from error
    # Into memory of their own: in a file's they may lie such that a matrix product rounds otherwise.
    model.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
    share_parameters(model, shared)
    if isinstance(data, dict):
        known: Any = getattr(model, "pretrained_cfg", None)
        model.pretrained_cfg = {**(known if isinstance(known, dict) else {}), **data}  # type: ignore[assignment]
    model.eval()


def timm_config(model: nn.Module, description: Mapping[str, Any]) -> dict[str, Any]:
    """The entries by which timm reads a folder, `timm.create_model("local-dir:...", pretrained=True)`.

    timm builds with names and plain values alone. What `model_args` cannot say in that way (a solver that is not as its
    name builds it, the options of an `attn_layer`) is written such that timm refuses it until it is given to
    create_model, since otherwise weights would be loaded into another function without a word.
    """
    model, spec = unwrapped(model), ModelSpec.from_dict(description["spec"])
    data = _data_config(model) or {"first_conv": "patch_embed.proj", "classifier": "head"}
    side = spec.img_size or tuple(data.get("input_size", (3, 224, 224)))[1:]
    size = side if isinstance(side, tuple) else (side, side)
    ours = {"input_size": (spec.in_chans or 3, *size), "num_classes": spec.num_classes, "custom_load": False}
    dropped = ("architecture", "label_offset", "test_input_size")
    return {
        "architecture": _BY_CLASS.get(spec.model, spec.model),
        "num_classes": spec.num_classes,
        "num_features": getattr(model, "num_features", None),
        "global_pool": getattr(model, "global_pool", None),
        "model_args": _model_args(spec, model),
        "pretrained_cfg": {**{key: value for key, value in data.items() if key not in dropped}, **ours},
    }


def _model_args(spec: ModelSpec, model: nn.Module) -> dict[str, Any]:
    own = {"img_size": spec.img_size, "in_chans": spec.in_chans, "num_classes": spec.num_classes}
    stated = {**spec.model_options, **own}
    if takes_attention_by_name(spec.model):
        options = {**spec.attention_options, **spec.layers.get(EVERY, {})}
        stated |= {"attention": spec.attention, **{key: _by_name(value) for key, value in options.items()}}
    elif spec.conversion and not all(is_softmax_attention(layer) for layer in vars_layers(model).values()):
        stated["attn_layer"] = f"converted, {_CONVERT}"  # an argument that timm refuses
    elif spec.attention is not None:
        plain = construct_on_meta(spec.model, {**stated, "attn_layer": attention_layer(spec.attention)})
        alike = next(differences(model, plain), None) is None
        stated["attn_layer"] = spec.attention if alike else f"{spec.attention} with options: {_GIVE}"
    return {name: value for name, value in stated.items() if value is not None}


def _by_name(value: Any) -> Any:
    """The name of a solver or adjoint that is as its name builds it; others in the form of a description."""
    for registry, base in ((solvers, solvers.Solver), (solvers.adjoints, solvers.adjoints.Adjoint)):
        if isinstance(value, base) and registry.get(registry.name_of(value)) == value:
            return registry.name_of(value)
    return encode(value, "an option")
