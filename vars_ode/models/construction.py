"""Models by name, of timm's registry or of a class; and out of their wrappers."""

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.overrides import TorchFunctionMode

from vars_ode.models import entrypoints  # noqa: F401  (registers the names)
from vars_ode.models.rvt import RobustVisionTransformer

CLASSES: dict[str, type[nn.Module]] = {  # for models that were built by their class, without timm's registry
    "vision_transformer": VisionTransformer,
    "robust_vision_transformer": RobustVisionTransformer,
}


def construct(name: str, options: Mapping[str, Any]) -> nn.Module:
    """A model of timm's registry or of `CLASSES`, with fresh weights; a ValueError for an unknown name."""
    if name in CLASSES:
        return CLASSES[name](**options)
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f" (did you mean {' or '.join(close)}?)" if close else ""
        raise ValueError(f"there is no model {name!r}{hint}; name a model of timm.list_models()")
    return timm.create_model(name, pretrained=False, **options)


def construct_on_meta(name: str, options: Mapping[str, Any]) -> nn.Module:
    """The same on torch's meta device: without memory for weights, and without drawing random numbers."""
    with on_meta():
        return construct(name, options)


@lru_cache(maxsize=32)
def usual_on_meta(name: str) -> nn.Module:
    """The model of a name without arguments, to compare with; shared, so not to be changed."""
    return construct_on_meta(name, {})


@contextmanager
def on_meta() -> Iterator[None]:
    """Models that are built inside are on torch's meta device, without their initialisation."""
    with torch.device("meta"), _Uninitialised():
        yield


class _Uninitialised(TorchFunctionMode):
    """Skips what fills tensors in place on the meta device: there are no values, and torch simulates each operation."""

    _FILLING = frozenset({"uniform_", "normal_", "erfinv_", "mul_", "add_", "sub_", "clamp_", "fill_", "zero_", "div_"})
    _FILLING |= {"constant_", "kaiming_uniform_"}  # of torch.nn.init, which name their tensor

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self._FILLING:
            filled = args[0] if args else (kwargs or {}).get("tensor")
            if isinstance(filled, torch.Tensor) and filled.is_meta:
                return filled
        return func(*args, **(kwargs or {}))


def takes_attention_by_name(name: str) -> bool:
    """Whether the model `name` takes `attention=` and its options among its own arguments."""
    return name.startswith("rvt_") or name == "robust_vision_transformer"


def name_of(model: nn.Module) -> str:
    """The name that builds a model's like: timm's, where it came from there, or that of its class; "" for neither."""
    name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if isinstance(name, str) and timm.is_model(name):
        return name
    return next((name for name, cls in CLASSES.items() if isinstance(model, cls)), "")


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside the wrappers of torch.compile and DistributedDataParallel."""
    while True:
        parallel = isinstance(model, nn.parallel.DistributedDataParallel)
        inner = model.module if parallel else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner
