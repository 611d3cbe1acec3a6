"""Names for classes: `get("rk4", num_steps=8)` instead of an import."""

import dataclasses
from typing import Any, Generic, TypeVar

from solvers.checks import one_of

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps names to dataclasses of one kind and builds them; errors list the valid names and options."""

    def __init__(self, kind: str, base: type[T]) -> None:
        self._kind = kind
        self._base = base
        self._classes: dict[str, type[T]] = {}
        self._aliases: dict[str, str] = {}

    def register(self, name: str, cls: type[T], *, aliases: tuple[str, ...] = (), overwrite: bool = False) -> None:
        """Make `cls` available as `name` and as each of `aliases`.

        Args:
            overwrite: let `cls` replace what has one of these names, for example when a notebook cell that defines
                it runs again. Without it a taken name is an error, so that no two classes get in each other's way.
        """
        if not (isinstance(cls, type) and issubclass(cls, self._base) and dataclasses.is_dataclass(cls)):
            raise ValueError(f"{name!r}: expected a dataclass derived from {self._base.__name__}, got {cls!r}")
        for known in (name, *aliases):
            holder = self._classes.get(self._aliases.get(known, known))
            if holder is not None and not overwrite:
                raise ValueError(
                    f"the {self._kind} name {known!r} is taken by {holder.__name__}; choose another one, or replace "
                    "that class by register(..., overwrite=True)"
                )
        for alias in aliases:
            self._classes.pop(alias, None)
        self._classes[name] = cls  # a name that is taken keeps its place in the list
        others = {alias: meant for alias, meant in self._aliases.items() if alias != name and meant in self._classes}
        self._aliases = {**others, **dict.fromkeys(aliases, name)}

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
        if name not in self._classes:  # looked up first: torch.compile traces this, but not the search for a hint
            one_of(self._kind, choice, self.available())
        cls = self._classes[name]
        self._check_options(choice, cls, options)
        return cls(**options)

    def name_of(self, choice: T) -> str:
        """The name under which an object's class is registered, so that `get(name, **fields)` builds its equal.

        Raises:
            ValueError: it is registered under none.
        """
        for name, cls in self._classes.items():
            if cls is type(choice):
                return name
        raise ValueError(
            f"{choice!r} is of a class that is no registered {self._kind}; register it under a name, and again "
            "wherever it is to be built from that name"
        )

    def _check_options(self, name: str, cls: type, options: dict[str, Any]) -> None:
        if not options:  # the usual case, and the one that torch.compile can trace
            return
        valid = [field.name for field in dataclasses.fields(cls) if field.init]
        unknown = sorted(set(options) - set(valid))
        if unknown:
            expected = f"valid options: {', '.join(valid)}" if valid else "it has no options"
            raise ValueError(f"{self._kind} {name!r} has no option {', '.join(map(repr, unknown))}; {expected}")
