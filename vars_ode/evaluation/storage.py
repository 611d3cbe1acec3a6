"""What an evaluation leaves in its folder, and how it is read back: no pickle is read.

evaluation.json   model, settings, conditions, summary, environment
results.csv       a row per condition and severity
outcomes.npz      arrays "benchmark/condition/severity/field" with a number per image; fields: index (int32, the
                  position in the whole set), label and prediction (int16 or int32, in the model's numbering),
                  correct (bool)
parts/            a file per finished condition, while the evaluation is running
"""

from __future__ import annotations

import csv
import json
import os
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vars_ode.files import write_atomically
from vars_ode.robustness import Outcome

RECORD, TABLE, OUTCOMES, PARTS = "evaluation.json", "results.csv", "outcomes.npz", "parts"
FORMAT_VERSION = 1
COLUMNS = ("benchmark", "condition", "severity", "images", "correct", "accuracy", "unreadable")
_FIELDS = ("index", "label", "prediction", "correct")


class Key(NamedTuple):
    """Which result: the benchmark, the condition in it, the severity (0 where there is but one)."""

    benchmark: str
    condition: str
    severity: int

    def as_dict(self) -> dict[str, Any]:
        return self._asdict()

    def __str__(self) -> str:
        parts = [self.benchmark, *([self.condition] if self.condition != self.benchmark else [])]
        return " ".join([*parts, *([str(self.severity)] if self.severity else [])])


class Part(NamedTuple):
    """A finished condition: its outcome and its record in evaluation.json."""

    outcome: Outcome
    record: dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """An evaluated model.

    Attributes:
        record: the content of evaluation.json.
        outcomes: what the model answered for each image, by `Key`, in the order of the record.
    """

    record: dict[str, Any]
    outcomes: dict[Key, Outcome]

    @property
    def summary(self) -> dict[str, Any]:
        """Accuracies and corruption errors. ValueError where the evaluation is not finished."""
        if "summary" not in self.record:
            raise ValueError("the evaluation is not finished; the command that began it goes on with it")
        found: dict[str, Any] = self.record["summary"]
        return found

    def flat(self) -> list[Outcome]:
        """The outcomes, each called by its condition, with the benchmark before it where another one has it too."""
        benchmarks: dict[str, set[str]] = {}
        for key in self.outcomes:
            benchmarks.setdefault(key.condition, set()).add(key.benchmark)
        found = []
        for key, outcome in self.outcomes.items():
            alone = len(benchmarks[key.condition]) == 1
            found.append(replace(outcome, condition=key.condition if alone else f"{key.benchmark} {key.condition}"))
        return found

    def accuracy(self, benchmark: str = "clean", condition: str | None = None, severity: int = 0) -> float:
        """Of one result; the condition is called as the benchmark by default."""
        return self.outcomes[Key(benchmark, condition or benchmark, severity)].accuracy

    def errors(self, benchmark: str) -> dict[str, tuple[float, ...]]:
        """By corruption, in the order of the severities: what `mean_corruption_error` takes."""
        return errors_of(self.outcomes, benchmark)


def errors_of(outcomes: Mapping[Key, Outcome], benchmark: str) -> dict[str, tuple[float, ...]]:
    """As `Evaluation.errors`."""
    found: dict[str, dict[int, float]] = {}
    for key, outcome in outcomes.items():
        if key.benchmark == benchmark and key.severity:
            found.setdefault(key.condition, {})[key.severity] = 1 - outcome.accuracy
    return {name: tuple(by[severity] for severity in sorted(by)) for name, by in found.items()}


def read_evaluation(folder: str | os.PathLike[str]) -> Evaluation:
    """What `vars-ode evaluate` wrote, also one that is not finished.

    Raises:
        ValueError: the folder holds no evaluation, or one that is damaged.
    """
    place = Path(folder)
    record = read_record(place)
    parts = read_parts(place)
    kept = [key_of(entry) for entry in record.get("conditions", [])]
    order = [*kept, *(key for key in parts if key not in kept)]
    return Evaluation(record, {key: parts[key].outcome for key in order if key in parts})


def read_record(folder: Path) -> dict[str, Any]:
    """evaluation.json, checked."""
    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{folder} holds no evaluation: there is no {RECORD}") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); evaluate again into a new folder") from error
    if not isinstance(record, dict) or record.get("format_version") != FORMAT_VERSION:
        found = record.get("format_version") if isinstance(record, dict) else None
        raise ValueError(f"{path} is of format version {found!r}, expected {FORMAT_VERSION}; evaluate again")
    return record


def key_of(entry: Mapping[str, Any]) -> Key:
    return Key(entry["benchmark"], entry["condition"], entry["severity"])


def read_parts(folder: Path) -> dict[Key, Part]:
    """The finished conditions: those put together, and those of an evaluation that is running."""
    found: dict[Key, Part] = {}
    whole = folder / OUTCOMES
    if whole.is_file():
        entries = {key_of(entry): entry for entry in read_record(folder).get("conditions", [])}
        arrays = _arrays(whole)
        found = {key: Part(outcome, entries[key]) for key, outcome in _outcomes(arrays, whole).items()}
    for path in sorted((folder / PARTS).glob("*.npz")):
        arrays = _arrays(path)
        record = json.loads(str(arrays.pop("record")))
        found |= {key: Part(outcome, record) for key, outcome in _outcomes(arrays, path).items()}
    return found


def write_part(folder: Path, key: Key, part: Part) -> None:
    """A finished condition, atomically."""
    place = folder / PARTS
    place.mkdir(exist_ok=True)
    name = blake2b(repr(tuple(key)).encode(), digest_size=8).hexdigest()
    arrays = {**_as_arrays(key, part.outcome), "record": np.array(json.dumps(part.record))}
    _save(place / f"{name}.npz", arrays)


def write_outcomes(folder: Path, parts: Mapping[Key, Part]) -> None:
    """All conditions in one file, atomically."""
    _save(folder / OUTCOMES, {k: v for key, part in parts.items() for k, v in _as_arrays(key, part.outcome).items()})


def remove_parts(folder: Path) -> None:
    """What is in the one file now."""
    place = folder / PARTS
    if place.is_dir():
        for path in place.iterdir():
            if path.suffix in (".npz", ".tmp"):  # the last are left where a process was killed
                path.unlink()
        if not any(place.iterdir()):
            place.rmdir()


def write_table(folder: Path, parts: Mapping[Key, Part]) -> None:
    """results.csv, atomically."""

    def write(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(row(key, part) for key, part in parts.items())

    write_atomically(folder / TABLE, write)


def row(key: Key, part: Part) -> dict[str, Any]:
    """Of results.csv."""
    correct = int(part.outcome.correct.sum())
    counts = {"images": len(part.outcome), "correct": correct, "accuracy": part.outcome.accuracy}
    return {**key.as_dict(), **counts, "unreadable": len(part.record["unreadable"])}


def _as_arrays(key: Key, outcome: Outcome) -> dict[str, NDArray[Any]]:
    top = max(int(tensor.max()) for tensor in (outcome.labels, outcome.predictions))
    small = np.int16 if top <= np.iinfo(np.int16).max else np.int32
    values: dict[str, NDArray[Any]] = {
        "index": outcome.indices.numpy().astype(np.int32),
        "label": outcome.labels.numpy().astype(small),
        "prediction": outcome.predictions.numpy().astype(small),
        "correct": outcome.correct.numpy(),
    }
    return {"/".join((*map(str, key), name)): value for name, value in values.items()}


def _outcomes(arrays: Mapping[str, NDArray[Any]], path: Path) -> dict[Key, Outcome]:
    found: dict[Key, dict[str, NDArray[Any]]] = {}
    try:
        for name, values in arrays.items():
            key, _, kind = name.rpartition("/")
            benchmark, _, rest = key.partition("/")
            condition, _, severity = rest.rpartition("/")
            found.setdefault(Key(benchmark, condition, int(severity)), {})[kind] = values
        return {key: _outcome(key, fields) for key, fields in found.items()}
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); evaluate again into a new folder") from error


def _outcome(key: Key, fields: Mapping[str, NDArray[Any]]) -> Outcome:
    index, label, prediction = (torch.from_numpy(fields[name].astype(np.int64)) for name in _FIELDS[:3])
    return Outcome(key.condition, key.severity, index, label, prediction)


def _arrays(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it, and the command measures it again") from error


def _save(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    def write(target: Path) -> None:
        with target.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    write_atomically(path, write)


def ordered(parts: Mapping[Key, Part], keys: Iterable[Key]) -> dict[Key, Part]:
    """In the order of the keys, others behind them."""
    first = [key for key in keys if key in parts]
    return {key: parts[key] for key in [*first, *(key for key in parts if key not in first)]}
