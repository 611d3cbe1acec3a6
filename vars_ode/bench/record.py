"""A bench's table as a file, and what changed since an earlier one."""

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vars_ode.bench.table import flat
from vars_ode.environment import environment
from vars_ode.files import write_json

RATIO_WORDS = frozenset({"over", "ratio", "relative", "growth", "speedup", "exponent"})
_HOST = ("processor", "cores", "threads", "instructions", "torch")

Entry = dict[str, Any]
Key = tuple[str, ...]


class Change(NamedTuple):
    """A ratio that moved, or a row or column that only one of two tables has."""

    place: str
    old: float | None
    new: float | None

    def __str__(self) -> str:
        if self.old is None or self.new is None:
            return f"{self.place}: only in the {'new' if self.old is None else 'old'} table"
        return f"{self.place}: {self.old:.4g} -> {self.new:.4g} ({self.new / self.old - 1:+.0%})"


def record(bench: str, rows: Sequence[Any], options: dict[str, Any]) -> dict[str, Any]:
    """What `--json` writes: the rows as printed, the bench's options, and what they were measured with."""
    entries = [{name: _as_json(value) for name, value in flat(row).items()} for row in rows]
    return {"bench": bench, "options": options, "rows": entries, "environment": environment()}


def write(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    write_json(path, content)


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A file of `write`; a ValueError where it is another one."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON ({error}); name a file that --json wrote") from None
    if not isinstance(content, dict) or not {"bench", "rows", "environment"} <= content.keys():
        raise ValueError(f"{path} is no table of a bench; name a file that --json wrote")
    return content


def changes(old: dict[str, Any], new: dict[str, Any], tolerance: float) -> list[Change]:
    """The ratios that differ by more than `tolerance`, relative to the old one, in either direction.

    Ratios are the columns with one of `RATIO_WORDS` in their name: times and bytes by themselves belong to a machine.

    Args:
        old, new: of `record`, of the same bench.
        tolerance: above 0; 0.2 names what moved by more than a fifth.
    """
    if not (math.isfinite(tolerance) and tolerance > 0):
        raise ValueError(f"the tolerance must be a number above 0, such as 0.2 for a fifth, got {tolerance}")
    if old["bench"] != new["bench"]:
        raise ValueError(f"the old table is of the bench {old['bench']!r}, this one of {new['bench']!r}; compare like")
    before, after = (dict(_ratios(content["rows"])) for content in (old, new))
    found = []
    for place in dict.fromkeys((*before, *after)):
        pair = before.get(place), after.get(place)
        if pair[0] is None or pair[1] is None or abs(pair[1] / pair[0] - 1) > tolerance:
            found.append(Change(place, *pair))
    return found


def other_hosts(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """In what the machines of two tables differ: "torch: 2.9 -> 2.14"."""
    before, after = old["environment"], new["environment"]
    return [f"{name}: {before.get(name)} -> {after.get(name)}" for name in _HOST if before.get(name) != after.get(name)]


def _ratios(rows: Sequence[Entry]) -> Iterator[tuple[str, float]]:
    """(row and column, ratio) of every ratio; rows go by their text, and by position where that is the same."""
    seen: Counter[Key] = Counter()
    for row in rows:
        key = tuple(value for value in row.values() if isinstance(value, str))
        seen[key] += 1
        place = " ".join((*key, *([f"(row {seen[key]})"] if seen[key] > 1 or not key else [])))
        for column, value in row.items():
            if isinstance(value, int | float) and value and RATIO_WORDS & set(column.split()):
                yield f"{place}: {column}", float(value)


def _as_json(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
