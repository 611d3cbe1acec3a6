"""What `convert_attention` does with every model of timm's registry, as a table in the package.

The table was made with one version of timm, which it names; `docs/timm_families.py` writes it anew.
"""

import fnmatch
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import timm
from torch import nn

from vars_ode.conversion.convert import attention_layers
from vars_ode.models.construction import construct_on_meta

OUTCOMES = ("converted", "in part", "left alone", "no attention")
TABLE = "families.json"


@dataclass(frozen=True)
class Family:
    """Models of one module of timm's with which the same happens.

    Attributes:
        module: of timm.models.
        outcome: "converted" if every attention layer is, "in part", "left alone", or "no attention" to convert. What
            "vars-softmax" converts, it converts losslessly.
        converted: classes of the layers that are converted.
        left_alone: the reasons, by class, of those that are not.
        models: names, the one with the fewest modules first.
    """

    module: str
    outcome: str
    converted: tuple[str, ...]
    left_alone: dict[str, str]
    models: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """All families, and the version of timm that they are of."""

    timm: str
    families: tuple[Family, ...]

    @classmethod
    def stored(cls) -> "Table":
        """The table in the package."""
        return _stored()

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    def family_of(self, model: str) -> Family | None:
        """The family of a model's name; None for one that the table does not have."""
        return next((family for family in self.families if model in family.models), None)


@cache
def _stored() -> Table:
    stored = json.loads(files("vars_ode.conversion").joinpath(TABLE).read_text(encoding="utf-8"))
    rows = (
        Family(row["module"], row["outcome"], tuple(row["converted"]), row["left_alone"], tuple(row["models"]))
        for row in stored["families"]
    )
    return Table(stored["timm"], tuple(rows))


def examine(model: nn.Module) -> tuple[str, tuple[str, ...], dict[str, str]]:
    """(outcome, classes that are converted, reasons by class of the others) for a model, which is not changed."""
    converted: Counter[str] = Counter()
    left_alone: dict[str, str] = {}
    for module, reason in attention_layers(model).values():
        if reason is None:
            converted[type(module).__name__] += 1
        else:
            left_alone[type(module).__name__] = reason
    outcome = OUTCOMES[(0 if not left_alone else 1) if converted else (2 if left_alone else 3)]
    return outcome, tuple(sorted(converted)), dict(sorted(left_alone.items()))


def survey(names: Iterable[str]) -> Table:
    """The table for models of timm's registry, which are built without memory for their weights."""
    groups: dict[str, tuple[Family, list[tuple[int, str]]]] = {}
    for name in names:
        model = construct_on_meta(name, {})
        family = Family(module_of(name), *examine(model), ())
        _, members = groups.setdefault(repr(family), (family, []))
        members.append((sum(1 for _ in model.modules()), name))
    families = [Family(**{**asdict(row), "models": _by_size(members)}) for row, members in groups.values()]
    return Table(timm.__version__, tuple(sorted(families, key=lambda row: (row.module, OUTCOMES.index(row.outcome)))))


def _by_size(members: Sequence[tuple[int, str]]) -> tuple[str, ...]:
    """The smallest first, the others by name."""
    first = min(members)[1]
    return (first, *sorted(name for _, name in members if name != first))


def timm_models(pattern: str = "*") -> list[str]:
    """Names of timm's own models that match a glob; without those that others, such as this library, registered."""
    names = timm.list_models(pattern)
    return [name for name in names if timm.models.model_entrypoint(name).__module__.startswith("timm.")]


def module_of(name: str) -> str:
    """The module of timm.models that a model is defined in."""
    return timm.models.model_entrypoint(name).__module__.rpartition(".")[2]


def listed(pattern: str = "*", outcome: str | None = None, family: str | None = None) -> list[tuple[str, Any]]:
    """(model, its family) for timm's models, out of the table; those that it does not have are examined.

    Args:
        pattern: a glob on the names of models.
        outcome: out of `OUTCOMES`; all by default.
        family: a glob on modules of timm, such as "eva".
    """
    rows = []
    for name in timm_models(pattern):
        if family is None or fnmatch.fnmatchcase(module_of(name), family):
            found = Table.stored().family_of(name) or survey([name]).families[0]
            if outcome is None or found.outcome == outcome:
                rows.append((name, found))
    return rows
