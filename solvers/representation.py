"""Short representations: what was chosen, not all that could have been."""

from dataclasses import fields
from typing import Any


def short_repr(obj: Any, **more: Any) -> str:
    """A dataclass as the call that rebuilds it: the fields that differ from their defaults, then `more`."""
    own = {field.name: getattr(obj, field.name) for field in fields(obj) if field.init and field.repr}
    defaults = {field.name: field.default for field in fields(obj)}
    chosen = {name: value for name, value in own.items() if not _same(value, defaults[name])} | more
    return f"{type(obj).__name__}({', '.join(f'{name}={value!r}' for name, value in chosen.items())})"


class ShortRepr:
    """Gives the dataclasses derived from it a short representation; @dataclass would write a long one for each."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__repr__" not in vars(cls):
            cls.__repr__ = cls.__repr__  # type: ignore[method-assign]  # found among the bases, and now the class's own

    def __repr__(self) -> str:
        return short_repr(self)


def _same(value: Any, default: Any) -> bool:
    return value is default or (type(value) is type(default) and bool(value == default))
