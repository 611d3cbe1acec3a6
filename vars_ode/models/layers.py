"""The VARS layers of a model: to find them, to get their inputs, and to set how they are solved."""

import fnmatch
from typing import Any, Literal, TypeVar

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

import solvers
from solvers import SteadyState
from solvers.adjoints import Adjoint
from vars_ode.attention import VARSAttention
from vars_ode.grids import TokenLayout
from vars_ode.layer import ReconstructionLayer, shared_copy
from vars_ode.measuring import evaluation_mode

M = TypeVar("M", bound=nn.Module)


def vars_layers(model: nn.Module, match: str | None = None) -> dict[str, ReconstructionLayer]:
    """The VARS layers by module name, in order; a layer itself has the name "".

    Args:
        model: any module.
        match: a glob on the names, such as "blocks.[0-3].attn"; all layers by default.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, ReconstructionLayer)}
    return {name: layer for name, layer in found.items() if match is None or fnmatch.fnmatchcase(name, match)}


def set_solver(
    model: nn.Module,
    solver: str | solvers.Solver | None = None,
    t1: float | None = None,
    sparsity: float | None = None,
    rate: float | str | None = None,
    initial: str | None = None,
    adjoint: str | Adjoint | None = None,
    until: SteadyState | Literal[False] | None = None,
    match: str | None = None,
    *,
    ridge: float | None = None,
) -> list[str]:
    """Set how the layers of a model are solved, in place; no weight changes. What is None stays as it is.

    Args:
        model: a model, or a layer itself.
        solver, t1, sparsity, rate, initial, adjoint, ridge: as for the layer's constructor.
        until: a `SteadyState` to stop each image at its equilibrium; False for none.
        match: a glob on module names, such as "blocks.[0-3].attn"; all layers by default.

    Returns:
        the names of the layers that were set; "" for `model` itself.

    Raises:
        ValueError: there is no such layer, or a setting is invalid for one of them; then none is changed.
    """
    given: dict[str, Any] = {
        "solver": solver,
        "t1": t1,
        "sparsity": sparsity,
        "rate": rate,
        "initial": initial,
        "adjoint": adjoint,
        "until": until,
        "ridge": ridge,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    if until is False:
        changes["until"] = None
    layers = require_layers(model, match)
    settings = {name: layer.resolve(**changes) for name, layer in layers.items()}
    for name, layer in layers.items():
        layer.configure(**settings[name])
    return list(layers)


def with_solver(model: M, solver: str | solvers.Solver | None = None, **settings: Any) -> M:
    """A copy that shares the parameters and buffers of `model`, with its layers set as by `set_solver`."""
    copy = shared_copy(model)
    set_solver(copy, solver, **settings)
    return copy


def single_step_limit(model: nn.Module) -> nn.Module:
    """A copy that shares the parameters of `model`, its layers in the limit in which VARS is self-attention.

    Raises:
        ValueError: no layer has such a limit.
    """
    copy = shared_copy(model)
    limits = {name: layer.single_step_limit() for name, layer in _attention_layers(copy).items()}
    if not limits:
        raise ValueError(
            f"no layer of this {type(model).__name__} has a single-step limit: VARSAttention has one, VARS-S none"
        )
    for name, limit in limits.items():
        if name == "":
            return limit
        copy.set_submodule(name, limit)
    place_layers(copy)
    return copy


def _attention_layers(model: nn.Module) -> dict[str, VARSAttention]:
    return {name: layer for name, layer in vars_layers(model).items() if isinstance(layer, VARSAttention)}


def place_layers(model: nn.Module) -> None:
    """Tell the layers of a vision transformer of timm's where its tokens lie, now and at every later forward pass.

    That happens by itself when such a model is built; layers that are put into one afterwards need it. Other models are
    left alone.
    """
    if isinstance(model, VisionTransformer):
        _place(model, model.patch_embed, model.blocks)


def _place(model: VisionTransformer, patch_embed: Any, blocks: nn.Module) -> None:
    layers = vars_layers(blocks).values()
    grid = getattr(patch_embed, "grid_size", None)
    if not layers or grid is None:
        return
    if not hasattr(patch_embed, "token_layout"):
        patch_embed.token_layout = TokenLayout(tuple(grid), model.num_prefix_tokens)
        patch_embed.register_forward_hook(_note_grid)
    for layer in layers:
        layer.layout = patch_embed.token_layout


def _note_grid(patch_embed: Any, inputs: Any, output: Tensor) -> None:
    """After a model's patch embedding: the grid of this image, where the size of images is free."""
    spatial = output.ndim == 4  # (batch, height, width, dim)
    patch_embed.token_layout.grid = tuple(output.shape[1:3]) if spatial else tuple(patch_embed.grid_size)


def _on_registration(model: Any, name: str, module: nn.Module | None) -> None:
    """Of any module in any other. timm gives attention layers no hint of the model that they are built for."""
    if not isinstance(model, VisionTransformer):
        return
    if name == "blocks" and module is not None and hasattr(model, "patch_embed"):
        _place(model, model.patch_embed, module)
    elif name == "patch_embed" and module is not None and hasattr(model, "blocks"):
        _place(model, module, model.blocks)
    elif hasattr(model, "blocks"):  # distilled models count their second token only after their blocks
        for layer in vars_layers(model.blocks).values():
            if layer.layout is not None:
                layer.layout.num_prefix_tokens = model.num_prefix_tokens


register_module_module_registration_hook(_on_registration)


def layer_inputs(model: nn.Module, x: Tensor) -> dict[str, tuple[ReconstructionLayer, Tensor]]:
    """The layers of a model by name, in the order they are called, each with the tokens that reach it.

    Args:
        model: any module; a layer itself goes by the name "layer".
        x: the input of the model.

    Raises:
        ValueError: there is no VARS layer in it.
    """
    names = {layer: name or "layer" for name, layer in require_layers(model, None).items()}
    found: dict[str, tuple[ReconstructionLayer, Tensor]] = {}

    def keep(layer: Any, inputs: tuple[Any, ...]) -> None:
        found.setdefault(names[layer], (layer, inputs[0].detach()))

    handles = [layer.register_forward_pre_hook(keep) for layer in names]
    try:
        with evaluation_mode(model), torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return found


def require_layers(model: nn.Module, match: str | None) -> dict[str, ReconstructionLayer]:
    """`vars_layers`, with a ValueError where there are none."""
    layers = vars_layers(model, match)
    if layers:
        return layers
    names = list(vars_layers(model))
    if names:
        raise ValueError(f"no VARS layer of this {type(model).__name__} matches {match!r}; its layers: {_short(names)}")
    raise ValueError(
        f"there is no VARS layer in this {type(model).__name__}; convert it by "
        "vars_ode.convert_attention(model), or build it with VARS attention, such as "
        'timm.create_model("vit_tiny_patch16_224", attn_layer=vars_ode.attention_layer("vars-d"))'
    )


def _short(names: list[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
