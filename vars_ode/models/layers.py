"""The models that the demo compares: one small vision transformer, and attentions to put into it."""

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import solvers
from vars_ode.attention import VARSAttention
from vars_ode.dictionaries import StaticDynamic
from vars_ode.study.plan import Settings

SINGLE_STEP = "single-step"
EXACT = "exact"  # the label of softmax attention, which has no solver

_STATIC: Mapping[str, Any] = {"dictionary": "static+dynamic"}
ATTENTIONS: Mapping[str, Mapping[str, Any] | None] = {
    "softmax": None,
    "vars-d": {"learned": "factor"},
    "vars-sd": {**_STATIC, "learned": "factor"},
    "vars-sd-dictionary": {**_STATIC, "learned": "dictionary"},
    "vars-d-dictionary": {"learned": "dictionary"},
    "vars-d-plain": {},
    "vars-sd-plain": _STATIC,
    "vars-softmax": {"dictionary": "softmax"},
}
DEFAULT_ATTENTIONS = ("softmax", "vars-d", "vars-sd", "vars-sd-dictionary")


def build_twin(attention: str, settings: Settings, seed: int) -> VisionTransformer:
    """A vision transformer for (batch, 1, 28, 28) images in [0, 1]; twins of a seed differ in their attention only."""
    torch.manual_seed(seed)
    return VisionTransformer(
        img_size=settings.image_size,
        patch_size=settings.patch_size,
        in_chans=1,
        num_classes=10,
        embed_dim=settings.embed_dim,
        depth=settings.depth,
        num_heads=settings.num_heads,
        mlp_ratio=settings.mlp_ratio,
        class_token=False,
        global_pool="avg",
        attn_layer=attention_class(attention, settings),
    )


def attention_class(attention: str, settings: Settings) -> type[nn.Module]:
    """What timm is to build each block's attention from; a ValueError that lists the names for an unknown one."""
    if attention not in ATTENTIONS:
        raise ValueError(f"unknown attention {attention!r}; choose among {', '.join(ATTENTIONS)}")
    chosen = ATTENTIONS[attention]
    if chosen is None:
        return Attention
    options = dict(chosen)
    if options.get("dictionary") == "static+dynamic":
        side = settings.image_size // settings.patch_size
        options["dictionary"] = StaticDynamic(grid=(side, side))
    if options.get("dictionary") != "softmax":
        options["num_features"] = settings.num_features
    return VARSAttention.configured(
        **options, sparsity=settings.sparsity, t1=settings.t1, solver=parse_solver(settings.solver)
    )


def parse_solver(label: str) -> solvers.Solver:
    """ "rk4-5" is RK4 with five steps over the horizon; "nesterov" has no step count."""
    match = re.fullmatch(r"(.+?)(?:-(\d+))?", label)
    name, steps = match.groups() if match else (label, None)
    return solvers.get(name, num_steps=int(steps)) if steps else solvers.get(name)


def vars_layers(model: nn.Module) -> dict[str, VARSAttention]:
    """The VARS layers of a model by name, in order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, VARSAttention)}


def with_solver(model: nn.Module, label: str) -> nn.Module:
    """A copy of a trained model whose layers solve the same problem by another solver. No weight changes.

    Args:
        label: as for `parse_solver`, or "single-step" for the limit in which VARS is self-attention.
    """
    if label == SINGLE_STEP:
        return _with_layers(model, VARSAttention.single_step_limit)

    def swapped(layer: VARSAttention) -> VARSAttention:
        layer = copy.copy(layer)
        layer.solver = parse_solver(label) if label != "nesterov" else EQUILIBRIUM
        return layer

    return _with_layers(model, swapped)


EQUILIBRIUM = solvers.Nesterov(max_steps=150, rtol=1e-3, atol=1e-4)
"""About a hundred steps reach it where there is an equilibrium to reach; a learned factor may leave none, and then the
run's record holds the solver's warning."""


def _with_layers(model: nn.Module, change: Callable[[VARSAttention], VARSAttention]) -> nn.Module:
    twin = copy.deepcopy(model)
    for name, layer in vars_layers(twin).items():
        twin.set_submodule(name, change(layer))
    return twin
