"""Weights into a model: checked before anything is changed, grids adapted."""

import math

import torch
from timm.layers import resample_abs_pos_embed
from timm.models import VisionTransformer
from torch import Tensor, nn

from vars_ode import fourier, grids
from vars_ode.checkpoints.files import CheckpointError

_SHOWN = 3  # names that a message lists of a kind


def drop_other_head(state: dict[str, Tensor], model: nn.Module) -> list[str]:
    own = model.state_dict()
    names = [name for name in ("head.weight", "head.bias") if name in state]
    if all(name in own and own[name].shape == state[name].shape for name in names):
        return []
    for name in names:
        del state[name]
    state.update({name: own[name] for name in ("head.weight", "head.bias") if name in own})
    return [f"{name}: the hint num_classes asks for another head" for name in names]


def adapt_grids(state: dict[str, Tensor], model: nn.Module) -> list[str]:
    """Resample static templates, filters and timm's position embeddings, in place of those in `state`, to the grids of
    the model."""
    own = model.state_dict()
    adapted = []
    for name, value in list(state.items()):
        if name not in own or own[name].shape == value.shape or own[name].ndim != value.ndim:
            continue
        module = model.get_submodule(name.rpartition(".")[0])
        grid = getattr(module, "grid", None)
        if name.endswith(("attn.kernel", "attn.output_kernel")) and grid is not None:
            old = _filter_grid(value)
            spectrum = torch.view_as_complex(value.contiguous().to(torch.promote_types(value.dtype, torch.float32)))
            state[name] = torch.view_as_real(fourier.resample(spectrum, old, grid)).to(value.dtype)
        elif name.endswith("dictionary.static") and grid is not None:
            side = math.isqrt(value.shape[1])
            if side * side != value.shape[1] or value.shape[::2] != own[name].shape[::2]:
                continue
            maps = grids.resample(value.transpose(1, 2).float(), (side, side), grid)
            state[name] = maps.transpose(1, 2).to(value.dtype)
        elif name == "pos_embed" and (prefix := _prefix_of_square(value, model)) is not None:
            state[name] = resample_abs_pos_embed(value, list(model.patch_embed.grid_size), None, prefix)  # type: ignore[union-attr, arg-type]
        else:
            continue
        adapted.append(f"{name} resampled from {tuple(value.shape)} to {tuple(state[name].shape)}")
    return adapted


def _prefix_of_square(embedding: Tensor, model: nn.Module) -> int | None:
    """The prefix tokens of an absolute position embedding of timm's that has a square grid; None if it has not."""
    if not isinstance(model, VisionTransformer) or embedding.shape[::2] != model.pos_embed.shape[::2]:
        return None
    prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    return prefix if math.isqrt(embedding.shape[1] - prefix) ** 2 == embedding.shape[1] - prefix else None


def _filter_grid(kernel: Tensor) -> grids.Grid:
    height, half = kernel.shape[-3:-1]
    return (height, height if height in (2 * half - 2, 2 * half - 1) else max(2 * half - 2, 1))


def check_fit(model: nn.Module, state: dict[str, Tensor], where: str, advice: str) -> None:
    """A CheckpointError that names what of a state dict a model does not take, or misses.

    Args:
        model: the model, on any device.
        state: the state dict.
        where: the file, for the message.
        advice: what to do, for the message.
    """
    own = model.state_dict()
    kinds = {
        "of other shape": [
            f"{name} is {_kind(state[name])} in the file and {_kind(tensor)} in the model"
            for name, tensor in own.items()
            if name in state and _kind(state[name]) != _kind(tensor)
        ],
        "missing": [name for name in own if name not in state],
        "not of this model": [name for name in state if name not in own],
    }
    problems = [
        f"{len(names)} {title}: {'; '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
        for title, names in kinds.items()
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{where} does not fit {type(model).__name__}: {'. '.join(problems)}. Nothing was loaded; {advice}"
        )


def _kind(tensor: Tensor) -> str:
    shape = str(tuple(tensor.shape))
    return shape if tensor.is_floating_point() else f"{shape} of {tensor.dtype}"


def shared_parameters(model: nn.Module) -> dict[str, str]:
    """Second names of parameters, each with the first: {"blocks.1.attn.qkv.weight": "blocks.0.attn.qkv.weight"}."""
    first: dict[int, str] = {}
    shared = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        known = first.setdefault(id(parameter), name)
        if known != name:
            shared[name] = known
    return shared


def share_parameters(model: nn.Module, shared: dict[str, str]) -> None:
    """Make parameters one again, as `shared_parameters` found them."""
    for name, other in shared.items():  # named_parameters has the first name first
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, model.get_parameter(other))
