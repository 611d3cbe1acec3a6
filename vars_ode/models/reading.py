"""What a living model was built with, read off its modules: timm keeps no constructor's arguments."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import DropPath, LayerScale, PatchDropout
from timm.layers.create_act import _ACT_LAYER_DEFAULT
from timm.layers.create_norm import _NORM_MAP
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vars_ode import dictionaries
from vars_ode.attention import VARSAttention
from vars_ode.configured import importable
from vars_ode.layer import ReconstructionLayer
from vars_ode.models.attentions import NamedAttention, available_attentions, named_attention
from vars_ode.models.construction import CLASSES, name_of, takes_attention_by_name, usual_on_meta
from vars_ode.models.rvt import RobustVisionTransformer
from vars_ode.rotary import VARSRotaryAttention

Attention = tuple[str, dict[str, Any]]
RVT_ARGUMENTS = tuple(
    name
    for name, parameter in inspect.signature(RobustVisionTransformer).parameters.items()
    if parameter.kind is not inspect.Parameter.VAR_KEYWORD
)
EVERY = "*"  # in a description: every layer
_OF_ATTENTION = ("revision", "normalize_queries", "sparsity", "num_steps", "num_features")  # among those


def read_model(model: nn.Module) -> dict[str, Any]:
    """Arguments of `ModelSpec` but for dtype and the settings of layers; not verified.

    Raises:
        ValueError: a model of another kind, or an attention that no name stands for.
    """
    if isinstance(model, RobustVisionTransformer):
        return _read_rvt(model)
    if isinstance(model, VisionTransformer):
        return _read_vit(model)
    raise ValueError(
        f"a {type(model).__name__} cannot be described; a RobustVisionTransformer can, and a VisionTransformer of "
        "timm's. Save its state dict, and build it yourself"
    )


def _read_rvt(model: RobustVisionTransformer) -> dict[str, Any]:
    name, config = name_of(model), dict(model.config)
    default: Any = usual_on_meta(name)
    own = {key: config.pop(key) for key in ("attention", "img_size", "in_chans", "num_classes")}
    options = {key: config.pop(key) for key in list(config) if not is_argument(key, name, own["attention"])}
    useless = unused_options(own["attention"], options)
    return {
        "model": name,
        **own,
        "attention_options": {key: value for key, value in options.items() if value is not None and key not in useless},
        "model_options": {key: value for key, value in config.items() if not _same(value, default.config[key])},
    }


def _read_vit(model: VisionTransformer) -> dict[str, Any]:
    name = name_of(model)
    default: Any = usual_on_meta(name)
    arguments, usual = vit_arguments(model), vit_arguments(default)
    layers = {key: layer for key, layer in model.named_modules() if key.startswith("blocks.") and key.endswith(".attn")}
    attention, others = _read_attentions(layers, default)
    options = {key: value for key, value in arguments.items() if not _same(value, usual.get(key))}
    if "global_pool" in options:
        options["fc_norm"] = arguments["fc_norm"]  # whose default follows the pooling
    size = getattr(model.patch_embed, "img_size", None)
    return {
        "model": name,
        "attention": attention[0] if attention else None,
        "attention_options": attention[1] if attention else {},
        "img_size": size[0] if size and size[0] == size[1] else size,
        "in_chans": _in_chans(model),
        "num_classes": model.num_classes,
        "model_options": options,
        "others": others,
    }


def read_by_name(model: nn.Module) -> dict[str, Any]:
    """Arguments of `ModelSpec` for a model of any family of timm's, without its attention; not verified.

    Told are sizes that models of many families keep on their modules, where they differ from those of the name.

    Raises:
        ValueError: the model has no name of timm's registry.
    """
    name = name_of(model)
    if not name or name in CLASSES:
        raise ValueError(
            f"this {type(model).__name__} cannot be described, as it was not made by timm.create_model; save its state "
            "dict, and build and convert it yourself"
        )
    arguments, usual = _sizes(model), _sizes(usual_on_meta(name))
    options = {key: value for key, value in arguments.items() if not _same(value, usual.get(key))}
    own = {key: options.pop(key, None) for key in ("img_size", "in_chans")}
    own["num_classes"] = arguments.get("num_classes")
    options.pop("num_classes", None)
    return {"model": name, "attention": None, **own, "model_options": options}


def _sizes(model: Any) -> dict[str, Any]:
    """Arguments that a model's modules tell, as far as they do; some models are a head on an `encoder`."""
    whole, model = model, getattr(model, "encoder", model)
    blocks = getattr(model, "blocks", None)
    blocks = blocks if isinstance(blocks, nn.Sequential | nn.ModuleList) and len(blocks) else [nn.Identity()]
    patch = getattr(model, "patch_embed", None)
    scale = getattr(blocks[0], "init_values", None)
    size = getattr(patch, "img_size", None)
    found = {
        "img_size": size[0] if isinstance(size, tuple) and size[0] == size[1] else size,
        "in_chans": _in_chans(model) if patch is not None else None,
        "num_classes": getattr(whole, "num_classes", None),
        "patch_size": getattr(patch, "patch_size", None),
        "embed_dim": getattr(model, "embed_dim", None),
        "global_pool": getattr(whole, "global_pool", None),
        "depth": len(blocks) if isinstance(blocks, nn.Module) else None,
        "num_heads": next((part.num_heads for part in blocks[0].modules() if hasattr(part, "num_heads")), None),
        "num_reg_tokens": getattr(getattr(model, "reg_token", None), "shape", (0, None))[1],
        "drop_rate": getattr(getattr(whole, "head_drop", None), "p", None),
        "attn_drop_rate": getattr(getattr(getattr(blocks[0], "attn", None), "attn_drop", None), "p", None),
        "drop_path_rate": _drop_path(blocks[-1]),
        "init_values": scale if isinstance(scale, float) else None,
        "dynamic_img_size": getattr(model, "dynamic_img_size", None),
    }
    kept = {key: getattr(model, key, None) for key in inspect.signature(type(model)).parameters}
    found |= {key: value for key, value in kept.items() if isinstance(value, bool | int | float | str)}
    return {key: value for key, value in found.items() if value is not None}


def _in_chans(model: Any) -> int | None:
    """Channels of the image; a stem of several layers keeps them where only the model tells."""
    told = getattr(model, "in_chans", None)
    return told if told is not None else getattr(getattr(model.patch_embed, "proj", None), "in_channels", None)


def _read_attentions(
    layers: Mapping[str, nn.Module], default: nn.Module
) -> tuple[Attention | None, dict[str, Attention]]:
    """The attention of the first layer, and those of the layers that have another one."""
    own = [type(module) for name, module in default.named_modules() if name.endswith(".attn")]
    found = {name: attention_of(layer) for name, layer in layers.items()}
    for name, layer in layers.items():
        if found[name] is None and type(layer) not in own:
            raise ValueError(
                f"this model cannot be described: {name} is a {type(layer).__name__}, which no name stands for; the "
                f"names are {', '.join(available_attentions())}"
            )
    first = next(iter(found.values()), None)
    return first, {name: other for name, other in found.items() if other is not None and other != first}


def is_argument(name: str, model: str, attention: str | None) -> bool:
    """Whether `name` is an argument of a model, by name, and not an option of its attention."""
    if takes_attention_by_name(model):
        return name in RVT_ARGUMENTS and name not in _OF_ATTENTION
    return attention is None or name not in named_attention(attention).option_names


def unused_options(attention: str, options: Mapping[str, Any]) -> list[str]:
    """Which of these options of attentions `attention` has no use for."""
    known = {name for other in available_attentions() for name in named_attention(other).option_names} | {"num_steps"}
    known -= set(RVT_ARGUMENTS) - {"normalize_queries", "sparsity", "num_steps", "num_features"}
    takes = named_attention(attention).option_names
    return [name for name in options if name in known and ("t1" if name == "num_steps" else name) not in takes]


def _same(value: Any, other: Any) -> bool:
    value, other = (list(each) if isinstance(each, tuple) else each for each in (value, other))
    return bool(value == other)


def attention_of(layer: nn.Module) -> Attention | None:
    """(name, options that differ from what the name gives) of an attention layer, without its settings.

    None for a layer that no name stands for.
    """
    row = _row(layer)
    if row is None:
        return None
    stated: dict[str, Any] = getattr(layer, "stated_options", dict)()
    defaults = {name: parameter.default for name, parameter in inspect.signature(row.layer).parameters.items()}
    if row.name.startswith("vars-") and "dictionary" in row.options:
        defaults["dictionary"] = dictionaries.get(row.options["dictionary"])
    placed = (
        ("grid", "dictionary") if "grid" in stated or _has_places(stated) else ()
    )  # always told: a model has its own
    return row.name, {name: value for name, value in stated.items() if name in placed or value != defaults.get(name)}


def _has_places(stated: dict[str, Any]) -> bool:
    return isinstance(stated.get("dictionary"), dictionaries.StaticDynamic)


def _row(layer: nn.Module) -> NamedAttention | None:
    """The name with the layer's class and learned form, and with its dictionary where one has it."""
    learned = getattr(getattr(layer, "learned", None), "name", False)
    rows = [named_attention(name) for name in available_attentions()]
    kind: type[nn.Module] = importable(type(layer))
    kind = VARSAttention if kind is VARSRotaryAttention else kind
    rows = [row for row in rows if row.layer is kind and row.options.get("learned", False) == learned]
    dictionary = getattr(layer, "dictionary_choice", None)
    return next((row for row in rows if _has_dictionary(row, dictionary)), rows[0] if rows else None)


def _has_dictionary(row: NamedAttention, choice: Any) -> bool:
    return "dictionary" in row.options and type(dictionaries.get(row.options["dictionary"])) is type(choice)


def vit_arguments(model: VisionTransformer) -> dict[str, Any]:
    """Arguments of `VisionTransformer` that build its like; without the attention layer.

    What the modules do not tell is left out: the heads of VARS-S, layers other than by a name of timm's.
    """
    block = model.blocks[0] if len(model.blocks) else nn.Identity()
    final = [not isinstance(norm, nn.Identity) for norm in (model.norm, model.fc_norm)]
    patch = model.patch_embed
    return {
        "patch_size": getattr(patch, "patch_size", None),
        "global_pool": model.global_pool,
        "embed_dim": model.embed_dim,
        "depth": len(model.blocks),
        **_block_arguments(block, model.embed_dim),
        "class_token": model.cls_token is not None,
        "pos_embed": "none" if model.pos_embed is None else "learn",
        "no_embed_class": model.no_embed_class,
        "reg_tokens": 0 if model.reg_token is None else model.reg_token.shape[1],
        "pre_norm": not isinstance(model.norm_pre, nn.Identity),
        "final_norm": any(final),
        "fc_norm": final[1],
        "pool_include_prefix": model.pool_include_prefix,
        "dynamic_img_size": model.dynamic_img_size,
        "dynamic_img_pad": getattr(patch, "dynamic_img_pad", False),
        "drop_rate": model.head_drop.p,
        "pos_drop_rate": model.pos_drop.p,
        "patch_drop_rate": model.patch_drop.prob if isinstance(model.patch_drop, PatchDropout) else 0.0,
        "drop_path_rate": _drop_path(model.blocks[-1] if len(model.blocks) else block),
        "weight_init": getattr(model, "weight_init_mode", None),
        "fix_init": getattr(model, "fix_init", False),
    }


def _block_arguments(block: nn.Module, dim: int) -> dict[str, Any]:
    attn, mlp = getattr(block, "attn", nn.Identity()), getattr(block, "mlp", nn.Identity())
    scale = getattr(block, "ls1", None)
    found = {
        "num_heads": getattr(attn, "num_heads", None),
        "mlp_ratio": _ratio(mlp, dim),
        "qkv_bias": _has_bias(attn, "qkv", "v"),
        "qk_norm": _is_there(attn, "q_norm"),
        "scale_attn_norm": _is_there(attn, "norm") if hasattr(attn, "qkv") else None,
        "scale_mlp_norm": _is_there(mlp, "norm"),
        "proj_bias": _has_bias(attn, "proj"),
        "init_values": getattr(scale, "init_values", 1e-5) if isinstance(scale, LayerScale) else None,
        "proj_drop_rate": getattr(getattr(mlp, "drop1", None), "p", None),
        "attn_drop_rate": getattr(getattr(attn, "attn_drop", None), "p", None),
        "norm_layer": _named(getattr(block, "norm1", None), _NORM_MAP),
        "act_layer": _named(getattr(mlp, "act", None), _ACT_LAYER_DEFAULT),
    }
    return {name: value for name, value in found.items() if value is not None or name == "init_values"}


def _ratio(mlp: nn.Module, dim: int) -> float | None:
    """hidden / dim, such that int(dim * ratio) is the hidden width again."""
    hidden = getattr(getattr(mlp, "fc1", None), "out_features", None)
    if hidden is None:
        return None
    return hidden / dim if int(dim * (hidden / dim)) == hidden else (hidden + 0.5) / dim


def _has_bias(module: nn.Module, *names: str) -> bool | None:
    layer = next((getattr(module, name) for name in names if hasattr(module, name)), None)
    return None if layer is None else layer.bias is not None


def _is_there(module: nn.Module, name: str) -> bool | None:
    part = getattr(module, name, None)
    return None if part is None else not isinstance(part, nn.Identity)


def _named(module: nn.Module | None, names: dict[str, Any]) -> str | None:
    """timm's name for a module's class, where it has one."""
    return next((name for name, cls in names.items() if cls is type(module)), None)


def _drop_path(block: nn.Module) -> float:
    """The rate that a model was given, which its last block has, in single precision."""
    path = getattr(block, "drop_path1", None)
    rate = float(path.drop_prob) if isinstance(path, DropPath) else 0.0
    rounded = round(rate, 6)
    return rounded if torch.tensor(rounded).item() == rate else rate


def settings_of_layers(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Settings of all VARS layers: those of the first under "*", and by name where another layer differs from it.

    Defaults are among them, which may be others where the description is read. Layers of different classes, whose
    rates have different names, have all of theirs by name.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, ReconstructionLayer)}
    if len({importable(type(layer)) for layer in layers.values()}) != 1:
        return {name: layer.settings() for name, layer in layers.items()}
    common = next(iter(layers.values())).settings()
    found = {EVERY: common}
    for name, layer in layers.items():
        changed = {key: value for key, value in layer.settings().items() if value != common[key]}
        if changed:
            found[name] = changed
    return found
