"""Whether two models are the same but for their weights: modules, parameters, and what is set on them."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from vars_ode.configured import importable
from vars_ode.layer import ReconstructionLayer

_NOT_COMPARED = ("training", "grad_checkpointing", "layout", "token_layout")  # how a model is used, not what it is
_ABSENT = object()


def differences(model: nn.Module, rebuilt: nn.Module) -> Iterator[str]:
    """What differs between a model and what its description builds, as sentences' parts.

    Compared are the classes of all modules; their public attributes that are numbers, strings, functions or plain
    objects, such as eps, dropout's p, sizes; settings of VARS layers; names and shapes of parameters and buffers.

    Args:
        model: the model.
        rebuilt: what its description builds, on any device.
    """
    own, other = (dict(each.named_modules(remove_duplicate=False)) for each in (model, rebuilt))
    for name in dict.fromkeys((*own, *other)):
        if name not in own or name not in other:
            yield _sentence(name, _class_name(own.get(name)), _class_name(other.get(name)))
        elif importable(type(own[name])) is not importable(type(other[name])):
            yield _sentence(name or "it", _class_name(own[name]), _class_name(other[name]))
        else:
            yield from _attributes(name, own[name], other[name])
    yield from _tensors(model, rebuilt)


def _attributes(name: str, module: nn.Module, rebuilt: nn.Module) -> Iterator[str]:
    own, other = _values(module), _values(rebuilt)
    for key, expected in other.items():
        value = own.get(key, _ABSENT)
        if value is _ABSENT or _plain(value) != _plain(expected):
            shown = "missing" if value is _ABSENT else repr(value)
            yield _sentence(f"{name}.{key}".removeprefix("."), shown, repr(expected))


def _values(module: nn.Module) -> dict[str, Any]:
    """Public attributes that can be compared; what a rebuilt lacks plays no part, as its class does not know it."""
    values = {
        key: value
        for key, value in vars(module).items()
        if not key.startswith("_") and key not in _NOT_COMPARED and _is_comparable(value)
    }
    return {**values, **module.settings()} if isinstance(module, ReconstructionLayer) else values


def _is_comparable(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_comparable(item) for item in value)
    simple = value is None or isinstance(value, bool | int | float | str | type)
    return simple or dataclasses.is_dataclass(value) or (callable(value) and not isinstance(value, nn.Module))


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _tensors(model: nn.Module, rebuilt: nn.Module) -> Iterator[str]:
    own, other = ({key: _shape(tensor) for key, tensor in each.state_dict().items()} for each in (model, rebuilt))
    for key in dict.fromkeys((*own, *other)):
        if own.get(key) != other.get(key):
            yield _sentence(key, own.get(key, "missing"), other.get(key, "missing"))


def _shape(tensor: Tensor) -> str:
    """As many words as say whether values fit: the precision is the weights' own matter."""
    return f"{'floating point' if tensor.is_floating_point() else tensor.dtype} of shape {tuple(tensor.shape)}"


def _class_name(module: nn.Module | None) -> str:
    return "missing" if module is None else f"a {importable(type(module)).__name__}"


def _sentence(what: str, value: str, expected: str) -> str:
    return f"{what} is {value} in the model and {expected} in what its description builds"
