"""Names for classes: `get("rk4", num_steps=8)` instead of an import."""

import dataclasses
import difflib
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps names to dataclasses of one kind and builds them; errors list the valid names and options."""

    def __init__(self, kind: str, base: type[T]) -> None:
        self._kind = kind
        self._base = base
        self._classes: dict[str, type[T]] = {}
        self._aliases: dict[str, str] = {}

    def register(self, name: str, cls: type[T], *, aliases: tuple[str, ...] = ()) -> None:
        """Make `cls` available as `name`. A name is given once: a second class under it is an error."""
        if not (isinstance(cls, type) and issubclass(cls, self._base) and dataclasses.is_dataclass(cls)):
            raise ValueError(f"{name!r}: expected a dataclass derived from {self._base.__name__}, got {cls!r}")
        for known in (name, *aliases):
            if known in self._classes or known in self._aliases:
                raise ValueError(f"the {self._kind} name {known!r} is taken; choose another one")
        self._classes[name] = cls
        self._aliases.update(dict.fromkeys(aliases, name))

    def available(self) -> tuple[str, ...]:
        """The registered names, without aliases."""
        return tuple(self._classes)

    def get(self, choice: "str | T", /, **options: Any) -> T:
        """Build what `choice` names with `options`; an object is returned as it is, or with `options` replaced."""
        if isinstance(choice, self._base):
            self._check_options(type(choice).__name__, type(choice), options)
            return dataclasses.replace(choice, **options) if options else choice  # type: ignore[type-var]
        if not isinstance(choice, str):
            raise ValueError(
                f"expected the name of a {self._kind} or a {self._base.__name__} object, got {choice!r}; "
                f"names: {', '.join(self.available())}"
            )
        name = self._aliases.get(choice, choice)
        if name not in self._classes:
            close = difflib.get_close_matches(choice, self._classes, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(f"unknown {self._kind} {choice!r}{hint}; choose one of {', '.join(self.available())}")
        cls = self._classes[name]
        self._check_options(choice, cls, options)
        return cls(**options)

    def _check_options(self, name: str, cls: type, options: dict[str, Any]) -> None:
        if not options:  # the usual case, and the one that torch.compile can trace
            return
        valid = [field.name for field in dataclasses.fields(cls) if field.init]
        unknown = sorted(set(options) - set(valid))
        if unknown:
            expected = f"valid options: {', '.join(valid)}" if valid else "it has no options"
            raise ValueError(f"{self._kind} {name!r} has no option {', '.join(map(repr, unknown))}; {expected}")
