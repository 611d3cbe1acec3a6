"""Settings as plain values of JSON, and back: numbers and strings as they are, objects by name and fields.

    Euler(num_steps=5)  <->  {"solver": "euler", "fields": {"num_steps": 5, "dt": null}}

Every field is written, so that a default which changes later changes nothing that was saved. Nothing but classes that
are registered by name is ever built.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import solvers
from vars_ode import dictionaries


class _Kind(NamedTuple):
    """Objects of a base class, by name."""

    base: type
    name_of: Callable[[Any], str]
    build: Callable[..., Any]


def _steady_state(name: str, **fields: Any) -> solvers.SteadyState:
    solvers.checks.one_of("rule to stop by", name, ("steady_state",))
    return solvers.SteadyState(**fields)


_KINDS = {
    "solver": _Kind(solvers.Solver, solvers.name_of, solvers.get),
    "adjoint": _Kind(solvers.adjoints.Adjoint, solvers.adjoints.name_of, solvers.adjoints.get),
    "dictionary": _Kind(dictionaries.Dictionary, dictionaries.name_of, dictionaries.get),
    "until": _Kind(solvers.SteadyState, lambda _: "steady_state", _steady_state),
}
_NUMBERS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}  # which JSON does not have


def encode(value: Any, where: str) -> Any:
    """A setting as plain values.

    Args:
        value: None, a number, a string, a registered solver, adjoint or dictionary, a `SteadyState`; or lists, tuples
            and string-keyed mappings of them.
        where: what it is, for the message.

    Raises:
        ValueError: it is of another kind, or of a class that is registered under no name.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return {"number": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [encode(item, where) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"mapping": {key: encode(item, f"{where}[{key!r}]") for key, item in value.items()}}
    for kind, known in _KINDS.items():
        if isinstance(value, known.base):
            return {kind: _name(value, known, where), "fields": _fields(value, where)}
    raise ValueError(
        f"{where} is {value!r}, which cannot be written as numbers, strings and names; take a registered name, a "
        "number or an object of a registered class"
    )


def _name(value: Any, kind: _Kind, where: str) -> str:
    try:
        return kind.name_of(value)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _fields(value: Any, where: str) -> dict[str, Any]:
    own = {item.name: getattr(value, item.name) for item in dataclasses.fields(value) if item.init}
    return {name: encode(item, f"{where}.{name}") for name, item in own.items()}


def decode(value: Any) -> Any:
    """What `encode` was given, lists as tuples.

    Raises:
        ValueError: a name that is not registered here, fields that it does not take, or no encoded value.
    """
    if isinstance(value, list):
        return tuple(decode(item) for item in value)
    if not isinstance(value, dict):
        return value
    if "solvers" in value:  # files of the first version
        return _from_class(value)
    if value.keys() == {"number"} and isinstance(value["number"], str) and value["number"] in _NUMBERS:
        return _NUMBERS[value["number"]]
    if value.keys() == {"mapping"} and isinstance(value["mapping"], dict):
        return {key: decode(item) for key, item in value["mapping"].items()}
    kinds = [kind for kind in _KINDS if kind in value]
    if len(kinds) != 1 or value.keys() != {kinds[0], "fields"} or not isinstance(value["fields"], dict):
        raise ValueError(f"expected a number, a string, a list or a named object with its fields, got {value!r}")
    return _build(kinds[0], value[kinds[0]], value["fields"])


def _build(kind: str, name: Any, fields: dict[str, Any]) -> Any:
    options = {field: decode(item) for field, item in fields.items()}
    try:
        return _KINDS[kind].build(name, **options)
    except TypeError as error:
        raise ValueError(f"{kind} {name!r} does not take the fields {options} ({error})") from error


def _from_class(value: dict[str, Any]) -> Any:
    cls = getattr(solvers, str(value["solvers"]), None)
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)) or not isinstance(value.get("fields"), dict):
        raise ValueError(f"the file asks for solvers.{value['solvers']}, which this version does not have")
    try:
        return cls(**value["fields"])
    except TypeError as error:
        raise ValueError(f"solvers.{value['solvers']} does not take the fields {value['fields']} ({error})") from error
