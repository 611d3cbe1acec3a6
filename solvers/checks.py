"""Checks of a user's input: each names what came and what was expected."""

import difflib
import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor


def one_of(name: str, value: Any, choices: Iterable[str]) -> None:
    """Whether `value` is one of the strings `choices`; the error suggests the closest one."""
    choices = tuple(choices)
    if isinstance(value, str) and value in choices:
        return
    close = difflib.get_close_matches(value, choices, n=1) if isinstance(value, str) else []
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise ValueError(f"unknown {name} {value!r}{hint}; choose one of {', '.join(choices)}")


def positive_int(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def positive_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}")


def non_negative_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")


def rate_of_state(rate: Any, y: Tensor) -> Tensor:
    """`rate`, what a field returned, if it can be the rate of change of `y`."""
    if not isinstance(rate, Tensor) or rate.shape != y.shape:
        got = f"shape {tuple(rate.shape)}" if isinstance(rate, Tensor) else type(rate).__name__
        raise ValueError(f"the field must return a tensor of y's shape, {tuple(y.shape)}, but got {got}")
    if rate.dtype != y.dtype:
        raise ValueError(
            f"the field must return a tensor of y's type, {y.dtype}, but got {rate.dtype}: cast it, or pass what it "
            "uses in `args`, whose widest type is that of the solve"
        )
    return rate


class CheckedField:
    """A field with the check of every value that it returns; for the first step of a loop."""

    def __init__(self, field: Any) -> None:
        self.field = field

    def __call__(self, t: Tensor, y: Tensor, args: Any) -> Tensor:
        return rate_of_state(self.field(t, y, args), y)

    def __getattr__(self, name: str) -> Any:
        """What else the field offers."""
        return getattr(self.field, name)
