"""Short representations of what holds tensors: their type and shape in place of their numbers."""

from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor


def tensor_repr(self: Any) -> str:
    """The `__repr__` of a dataclass or named tuple that holds tensors: ``Problem(drive=float32[2, 3], t1=5.0)``."""
    names = [field.name for field in fields(self) if field.repr] if is_dataclass(self) else self._fields
    shown = (f"{name}={_short(getattr(self, name))}" for name in names)
    return f"{type(self).__name__}({', '.join(shown)})"


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return repr(value)
