"""A finished study in three small files: what was answered for every image, without models and traces.

NAME.json   settings, versions, chosen learning rates, and a record per training
NAME.csv    a row per arm, seed, solver, condition and severity
NAME.npz    predictions, and how well maps find objects
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vars_ode.evaluation import Evaluation, read_evaluation
from vars_ode.study.measure import ATTACKED, EVALUATION
from vars_ode.study.run import OBJECTS

MISSING = 255  # in place of a prediction under a condition that an arm was not measured in
_KEPT = ("attention", "seed", "lr", "solver", "parameters", "train_seconds", "history", "warnings", "active", "gap")


class Run(NamedTuple):
    """Which training."""

    arm: str
    seed: int


@dataclass(frozen=True, eq=False)
class Archive:
    """What `collect` wrote.

    Attributes:
        record: settings, versions, learning rates, and the records of the trainings.
        runs: the trainings, in the order of the tables.
        predictions: for each group of images ("evaluation", "attacks"), (runs, conditions, images) of uint8.
        labels: for each group, (images,).
        conditions: for each group, (condition, severity) in the order of the table.
        objects: by training, what `measure_objects` found.
    """

    record: dict[str, Any]
    runs: tuple[Run, ...]
    predictions: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray]
    conditions: Mapping[str, tuple[tuple[str, int], ...]]
    objects: Mapping[Run, Mapping[str, np.ndarray]]

    def __repr__(self) -> str:
        return f"Archive({len(self.arms)} arms, {len(self.runs)} trainings)"

    @property
    def settings(self) -> dict[str, Any]:
        found: dict[str, Any] = self.record["settings"]
        return found

    @property
    def arms(self) -> list[str]:
        """In the order of the plan."""
        names = {run.arm for run in self.runs}
        planned = [name for name in self.settings.get("arms", {}) if name in names]
        return [*planned, *sorted(names - set(planned))]

    def seeds(self, arm: str) -> list[int]:
        return sorted(run.seed for run in self.runs if run.arm == arm)

    def details(self, arm: str, name: str) -> list[Any]:
        """One entry of the records of an arm's trainings, in the order of the seeds."""
        found = {entry["seed"]: entry[name] for entry in self.record["runs"] if entry["attention"] == arm}
        return [found[seed] for seed in self.seeds(arm)]

    def correct(
        self, arm: str, conditions: Sequence[tuple[str, int]], seeds: Sequence[int] | None = None
    ) -> np.ndarray:
        """Whether each image was recognised, (seeds, conditions, images) boolean.

        Args:
            arm: its name.
            conditions: all of one group of images.
            seeds: all of the arm's by default.

        Raises:
            ValueError: a condition that was not measured for the arm, or conditions on different images.
        """
        groups = {group for group, names in self.conditions.items() if set(conditions) <= set(names)}
        if not groups:
            raise ValueError(f"no images were measured under all of {list(conditions)}")
        group = groups.pop()
        columns = [self.conditions[group].index(condition) for condition in conditions]
        rows = [self.runs.index(Run(arm, seed)) for seed in (self.seeds(arm) if seeds is None else seeds)]
        answers = self.predictions[group][np.ix_(rows, columns)]
        if (answers == MISSING).any():
            raise ValueError(f"{arm} was not measured under all of {list(conditions)}")
        found: np.ndarray = answers == self.labels[group]
        return found

    def measured(self, arm: str, condition: tuple[str, int]) -> bool:
        """Whether all trainings of an arm were measured under a condition."""
        rows = [index for index, run in enumerate(self.runs) if run.arm == arm]
        return any(
            condition in names and not (self.predictions[group][rows, names.index(condition)] == MISSING).any()
            for group, names in self.conditions.items()
        )


def collect(folder: Path, target: Path) -> None:
    """Put the results of a study into `target` with the endings .json, .csv and .npz.

    Args:
        folder: the study's, with results.json.
        target: a path without an ending.

    Raises:
        ValueError: there are no results, or runs were measured on different images.
    """
    try:
        study = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds no finished study ({error}); run it to its end first") from error
    kept = [{name: run[name] for name in _KEPT if name in run} for run in study["runs"]]
    kept.sort(key=lambda run: (run["attention"], run["seed"]))
    names = [f"{run['attention']}-seed{run['seed']}" for run in kept]
    arrays: dict[str, np.ndarray] = {}
    conditions: dict[str, Any] = {}
    for group in (EVALUATION, ATTACKED):
        found = {name: read_evaluation(path) for name in names if (path := folder / "runs" / name / group).is_dir()}
        if found:
            arrays[f"{group}/labels"], arrays[f"{group}/predictions"], conditions[group] = _table(names, found)
    for number, name in enumerate(names):
        if (folder / "runs" / name / OBJECTS).is_file():
            with np.load(folder / "runs" / name / OBJECTS, allow_pickle=False) as objects:
                arrays |= {f"objects/{number}/{key}": objects[key].astype(np.float16) for key in objects.files}
    record = {key: study[key] for key in ("settings", "versions", "learning_rates", "wall_seconds", "command")}
    target.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(target.with_suffix(".npz"), **arrays)  # type: ignore[arg-type]
    text = json.dumps({**record, "conditions": conditions, "runs": kept}, indent=1)
    target.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    shutil.copyfile(folder / "results.csv", target.with_suffix(".csv"))


def _table(names: Sequence[str], found: Mapping[str, Evaluation]) -> tuple[np.ndarray, np.ndarray, Any]:
    """(labels, predictions, conditions) of evaluations on the same images."""
    first = next(iter(next(iter(found.values())).outcomes.values()))
    keys = list(dict.fromkeys((key.condition, key.severity) for each in found.values() for key in each.outcomes))
    answers = np.full((len(names), len(keys), len(first)), MISSING, np.uint8)
    for row, name in enumerate(names):
        for key, outcome in found[name].outcomes.items() if name in found else ():
            if not bool((outcome.indices == first.indices).all()):
                raise ValueError(f"{name} was measured on other images than the runs before it")
            answers[row, keys.index((key.condition, key.severity))] = outcome.predictions.numpy()
    return first.labels.numpy().astype(np.uint8), answers, keys


def read_archive(target: Path) -> Archive:
    """What `collect` wrote.

    Raises:
        ValueError: a file is missing or damaged.
    """
    try:
        record = json.loads(target.with_suffix(".json").read_text(encoding="utf-8"))
        with np.load(target.with_suffix(".npz"), allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
        runs = tuple(Run(run["attention"], run["seed"]) for run in record["runs"])
        groups = record["conditions"]
        objects: dict[Run, dict[str, np.ndarray]] = {}
        for name, values in arrays.items():
            if name.startswith("objects/"):
                _, number, key = name.split("/", 2)
                objects.setdefault(runs[int(number)], {})[key] = values
        return Archive(
            record,
            runs,
            {group: arrays[f"{group}/predictions"] for group in groups},
            {group: arrays[f"{group}/labels"] for group in groups},
            {group: tuple((name, severity) for name, severity in keys) for group, keys in groups.items()},
            objects,
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{target} is no archived study that can be read ({error})") from error
