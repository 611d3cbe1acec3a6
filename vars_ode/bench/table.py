"""Rows of measurements as text."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any


def flat(row: Any) -> dict[str, Any]:
    """A dataclass or mapping as one level of columns: {"kib": {5: 1.0}} becomes {"kib 5": 1.0}."""
    mapping = asdict(row) if is_dataclass(row) and not isinstance(row, type) else row
    columns: dict[str, Any] = {}
    for name, value in mapping.items():
        if isinstance(value, Mapping):
            columns.update({f"{name} {key}": entry for key, entry in value.items()})
        else:
            columns[name.replace("_", " ")] = value
    return columns


def table(rows: Sequence[Any]) -> str:
    """Aligned columns with headings; numbers to four significant digits, a dash for None."""
    entries = [flat(row) for row in rows]
    names = list(dict.fromkeys(name for entry in entries for name in entry))
    lines = [names, *([_text(entry.get(name)) for name in names] for entry in entries)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(names))]
    first = lines[1] if len(lines) > 1 else names
    is_text = [not _is_number(text) for text in first]
    return "\n".join(
        "  ".join(
            text.ljust(width) if to_the_left else text.rjust(width)
            for text, width, to_the_left in zip(line, widths, is_text, strict=True)
        ).rstrip()
        for line in lines
    )


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text == "-"
    return True
