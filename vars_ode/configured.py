"""Classes with other defaults, for timm's `attn_layer=`, which does not take a functools.partial."""

import copyreg
import inspect
from abc import ABCMeta
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar

from torch import nn

T = TypeVar("T", bound=nn.Module)


class _ConfiguredType(ABCMeta):
    """The type of such classes. They cannot be imported by name, so they are pickled as base and options."""

    def __repr__(cls) -> str:
        base, options = getattr(cls, "base", None), vars(cls).get("options")
        if base is None or options is None:
            return super().__repr__()
        return f"{base.__name__}.configured({', '.join(f'{name}={value!r}' for name, value in options.items())})"


class _Configured(metaclass=_ConfiguredType):
    """Mixed in: fills in the options."""

    base: ClassVar[type[nn.Module]]
    options: ClassVar[dict[str, Any]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**type(self).options, **kwargs})


def configured(cls: type[T], options: Mapping[str, Any]) -> type[T]:
    """A subclass of `cls` whose constructor has other defaults; it is pickled and copied like any class.

    Args:
        cls: a layer's class; one that was made here gets the new options on top of its own.
        options: keyword arguments of the constructor.

    Raises:
        ValueError: an option that the constructor does not take; the message lists those it takes.
    """
    options = dict(options)
    base: Any = cls
    if issubclass(cls, _Configured):
        options = {**cls.options, **options}
        base = cls.base if "options" in vars(cls) else cls
    check_options(base.__name__, options, option_names(base))
    bases = (base,) if issubclass(base, _Configured) else (_Configured, base)
    made: Any = _ConfiguredType(base.__name__, bases, {"options": options, "base": base, "__module__": base.__module__})
    return made


def importable(cls: type) -> type:
    """The class behind those made here: `cls` itself for every other."""
    while "options" in vars(cls) and issubclass(cls, _Configured):
        cls = cls.base
    return cls


def option_names(cls: type) -> list[str]:
    """The keyword arguments of a layer's constructor, without its width."""
    for owner in cls.__mro__:
        if owner is not _Configured and "__init__" in vars(owner) and not issubclass(owner, _Configured):
            names = inspect.signature(vars(owner)["__init__"]).parameters
            return [name for name in names if name not in ("self", "dim")]
    return []


def check_options(owner: str, options: Iterable[str], valid: Iterable[str]) -> None:
    """A ValueError that names the options which `owner` does not have, and those it has."""
    valid = list(valid)
    unknown = sorted(set(options) - set(valid))
    if unknown:
        takes = f"valid options: {', '.join(valid)}" if valid else "it has none"
        raise ValueError(f"{owner} has no option {', '.join(map(repr, unknown))}; {takes}")


def _reduce(cls: Any) -> str | tuple[Any, ...]:
    if "options" in vars(cls):
        return configured, (cls.base, cls.options)
    return cls.__qualname__  # a user's own subclass, found by name


copyreg.pickle(_ConfiguredType, _reduce)
