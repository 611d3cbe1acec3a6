"""The results of a study as read from its folder: `results.csv`, `results.json` and the traces, and means over them.

A seed enters a mean only if all the measurements of that mean exist for it. So an interrupted run lowers the number of
seeds; it does not shift the mean towards the conditions that happened to finish.
"""

from __future__ import annotations

import csv
import json
import math
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vars_ode.statistics import Spread

BASELINE = "softmax"


class Condition(NamedTuple):
    """What was done to the test images: severity 0 for "clean" and attacks, from 1 for corruptions."""

    name: str
    severity: int


CLEAN = Condition("clean", 0)


@dataclass(frozen=True)
class AccuracyRow:
    """One line of `results.csv`: the accuracy of one trained model, under one solver, in one condition.

    The accuracy is NaN, an empty field in the file, where the solver diverged.
    """

    attention: str
    seed: int
    solver: str
    condition: Condition
    accuracy: float
    evaluations: float = math.nan
    milliseconds: float = math.nan
    stable: bool = True  # whether theory lets the steps be this long


@dataclass(frozen=True)
class Run:
    """One training: an entry of `runs` in `results.json`.

    `warnings` are those of the solvers, each once; `solves` the rows of `vars_ode.training.Training.solves`.
    """

    attention: str
    seed: int
    solver: str | None = None
    parameters: int | None = None
    train_seconds: float = math.nan
    history: tuple[dict[str, float], ...] = ()
    warnings: tuple[str, ...] = ()
    solves: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class SolverPoint:
    """One attention under one solver, without retraining; `column` is "clean" or "corrupted"."""

    attention: str
    solver: str
    trained: bool
    column: str
    by_seed: dict[int, float]
    evaluations: float
    milliseconds: float
    stable: bool = True

    @property
    def accuracy(self) -> Spread:
        return Spread.of(self.by_seed.values())


@dataclass
class Results:
    """Everything in a results folder; `notes` are sentences on what could not be read."""

    folder: Path
    rows: dict[tuple[str, int, str, Condition], AccuracyRow] = field(default_factory=dict)
    runs: dict[tuple[str, int], Run] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def attentions(self) -> list[str]:
        """The baseline first, then the variants in the order in which they were run."""
        names = dict.fromkeys([key[0] for key in self.runs] + [key[0] for key in self.rows])
        return sorted(names, key=lambda name: name != BASELINE)

    @property
    def variants(self) -> list[str]:
        """All attentions but the baseline."""
        return [name for name in self.attentions if name != BASELINE]

    def seeds(self, attention: str) -> list[int]:
        trained = {seed for name, seed in self.runs if name == attention}
        return sorted(trained | {row.seed for row in self.rows.values() if row.attention == attention})

    def trained_solver(self, attention: str, seed: int) -> str | None:
        """The solver of the training; without `results.json` the one with the most measurements."""
        run = self.runs.get((attention, seed))
        if run is not None and run.solver is not None:
            return run.solver
        counts = Counter(key[2] for key in self.rows if key[:2] == (attention, seed))
        return counts.most_common(1)[0][0] if counts else None

    def trained_rows(self) -> list[AccuracyRow]:
        """The measurements under the solver of the training: all but those of the solver sweep."""
        return [row for row in self.rows.values() if row.solver == self.trained_solver(row.attention, row.seed)]

    @property
    def attacks(self) -> list[Condition]:
        measured = (row.condition for row in self.trained_rows() if row.condition.severity == 0)
        return list(dict.fromkeys(condition for condition in measured if condition != CLEAN))

    @property
    def _graded(self) -> list[Condition]:
        return list(dict.fromkeys(row.condition for row in self.trained_rows() if row.condition.severity > 0))

    @property
    def shifts(self) -> list[str]:
        """Those that the plan keeps apart from the corruptions."""
        return [str(name) for name in self.settings.get("shifts") or ()]

    @property
    def corrupted_conditions(self) -> list[Condition]:
        return [condition for condition in self._graded if condition.name not in self.shifts]

    @property
    def corruptions(self) -> dict[str, list[Condition]]:
        """Corruption -> its measured severities, in ascending order."""
        found: dict[str, list[Condition]] = {}
        for condition in self.corrupted_conditions:
            found.setdefault(condition.name, []).append(condition)
        return {name: sorted(conditions) for name, conditions in found.items()}

    def _complete(
        self, attention: str, seed: int, conditions: Sequence[Condition], solver: str | None
    ) -> list[AccuracyRow]:
        """The rows of all the conditions, or none where one is missing."""
        solver = solver or self.trained_solver(attention, seed)
        if solver is None:
            return []
        found = [self.rows.get((attention, seed, solver, condition)) for condition in conditions]
        rows = [row for row in found if row is not None]
        return rows if len(rows) == len(conditions) else []

    def by_seed(
        self, attention: str, conditions: Sequence[Condition], solver: str | None = None, quantity: str = "accuracy"
    ) -> dict[int, float]:
        """Seed -> mean of `quantity` over `conditions`, for seeds that have all of them.

        Args:
            attention: a name.
            conditions: what the mean is over.
            solver: a label; None for the solver of the training.
            quantity: "accuracy", "evaluations" or "milliseconds".
        """
        means = {}
        for seed in self.seeds(attention):
            values = [getattr(row, quantity) for row in self._complete(attention, seed, conditions, solver)]
            if values and all(math.isfinite(value) for value in values):
                means[seed] = float(np.mean(values))
        return means

    def spread(self, attention: str, conditions: Sequence[Condition], solver: str | None = None) -> Spread:
        return Spread.of(self.by_seed(attention, conditions, solver).values())

    def measures(self) -> dict[str, list[Condition]]:
        """The headline: clean images, mean of the corruptions, each attack; only what was measured."""
        if not self.rows:
            return {}
        measures = {"clean images": [CLEAN], "mean of corruptions": self.corrupted_conditions}
        for shift in self.shifts:
            measures[readable(shift)] = [condition for condition in self._graded if condition.name == shift]
        measures |= {in_capitals(attack.name): [attack] for attack in sorted(self.attacks)}
        return {name: conditions for name, conditions in measures.items() if conditions}

    def sweep_conditions(self, attention: str) -> list[Condition]:
        """The corruptions under which solvers other than that of the training were measured."""
        rows = (row for key, row in self.rows.items() if key[0] == attention and row.condition.severity > 0)
        return list(dict.fromkeys(r.condition for r in rows if r.solver != self.trained_solver(attention, r.seed)))

    def sweep(self, attention: str) -> list[SolverPoint]:
        """All solvers measured on the trained weights, cheapest first; none if only that of the training was."""
        trained = {self.trained_solver(attention, seed) for seed in self.seeds(attention)}
        solvers = list(dict.fromkeys(key[2] for key in self.rows if key[0] == attention))
        if not set(solvers) - trained:
            return []
        points = []
        for column, conditions in (("clean", [CLEAN]), ("corrupted", self.sweep_conditions(attention))):
            for solver in solvers:
                by_seed = self.by_seed(attention, conditions, solver) if conditions else {}
                cost = [
                    Spread.of(self.by_seed(attention, conditions, solver, quantity).values()).mean
                    for quantity in ("evaluations", "milliseconds")
                ]
                if by_seed:
                    stable = all(r.stable for key, r in self.rows.items() if (key[0], key[2]) == (attention, solver))
                    points.append(
                        SolverPoint(attention, solver, solver in trained, column, by_seed, cost[0], cost[1], stable)
                    )
        return sorted(points, key=lambda p: (math.isnan(p.evaluations), p.evaluations, p.solver))

    def diverged(self) -> dict[tuple[str, str], list[int]]:
        """(attention, solver) -> the seeds at which a solve diverged in some condition."""
        seeds: dict[tuple[str, str], set[int]] = {}
        for row in self.rows.values():
            if math.isnan(row.accuracy):
                seeds.setdefault((row.attention, row.solver), set()).add(row.seed)
        return {key: sorted(found) for key, found in seeds.items()}

    def trace(self, attention: str) -> tuple[int, dict[str, np.ndarray]] | None:
        """The first seed that has a readable trace, and its arrays."""
        for seed in self.seeds(attention):
            path = self.folder / "runs" / f"{attention}-seed{seed}" / "trace.npz"
            if not path.is_file():
                continue
            try:
                with np.load(path, allow_pickle=False) as arrays:
                    return seed, {name: arrays[name] for name in arrays.files}
            except (OSError, ValueError, EOFError, zipfile.BadZipFile):
                self._note(f"The trace of {attention}, seed {seed}, could not be read.")
        return None

    def warnings(self) -> dict[str, dict[str, list[int]]]:
        """Warning -> attention -> the seeds in whose runs it was given."""
        found: dict[str, dict[str, list[int]]] = {}
        for run in self.runs.values():
            for message in run.warnings:
                found.setdefault(message, {}).setdefault(run.attention, []).append(run.seed)
        return found

    def _note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)


def in_capitals(attack: str) -> str:
    """An attack's name for readers: abbreviations in capitals."""
    return attack.upper() if attack in ("fgsm", "pgd") else attack


def readable(name: str) -> str:
    """A condition's name for readers."""
    return name.replace("_", " ")


def number(value: Any) -> float:
    """A float, or NaN for whatever is empty or not a number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def read_results(folder: Path) -> Results:
    """Read a results folder; pieces that are missing or damaged are listed in `Results.notes`."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"No results folder at {folder}: run a study such as `vars-ode demo` first, or name its folder."
        )
    results = Results(folder)
    _read_csv(results)
    _read_json(results)
    return results


def _read_csv(results: Results) -> None:
    path = results.folder / "results.csv"
    if not path.is_file():
        results.notes.append("results.csv is missing: there are no accuracies to report.")
        return
    damaged = 0
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            lines = list(csv.DictReader(file))
    except (OSError, csv.Error) as error:
        results.notes.append(f"results.csv cannot be read ({error}): there are no accuracies to report.")
        return
    for line in lines:
        row = _row(line)
        if row is None:
            damaged += 1
        else:  # the last line wins: a resumed study measures again what it was measuring when it stopped
            results.rows[row.attention, row.seed, row.solver, row.condition] = row
    if damaged:
        results.notes.append(f"{damaged} line(s) of results.csv hold no usable accuracy and were left out.")


def _row(line: dict[str, str]) -> AccuracyRow | None:
    accuracy, seed, severity = (number(line.get(name)) for name in ("accuracy", "seed", "severity"))
    attention, solver, condition = (line.get(name) for name in ("attention", "solver", "condition"))
    measured = 0 <= accuracy <= 1 or line.get("accuracy") == ""
    if not (attention and condition and measured and math.isfinite(seed) and math.isfinite(severity)):
        return None
    cost = number(line.get("evaluations")), number(line.get("milliseconds"))
    where = attention, int(seed), solver or "", Condition(condition, int(severity))
    return AccuracyRow(*where, accuracy, *cost, stable=line.get("stable") != "False")


def _read_json(results: Results) -> None:
    path = results.folder / "results.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        results.notes.append("results.json is missing or damaged: settings, parameters and training are unknown.")
        return
    for name in ("settings", "versions"):
        found = content.get(name) or {}
        if isinstance(found, dict):
            setattr(results, name, found)
        else:
            results._note(f"results.json holds no mapping under {name!r}; left out.")
    results.details = {key: content[key] for key in ("started", "wall_seconds", "command") if content.get(key)}
    runs = content.get("runs") or []
    for entry in runs if isinstance(runs, list) else [runs]:
        try:
            run = _run(entry)
        except (KeyError, TypeError, ValueError, AttributeError):
            results._note("results.json holds a run without attention and seed, or with a damaged history; left out.")
        else:
            results.runs[run.attention, run.seed] = run


def _run(entry: dict[str, Any]) -> Run:
    history = tuple({key: number(value) for key, value in epoch.items()} for epoch in entry.get("history") or [])
    parameters = entry.get("parameters")
    seconds = number(entry.get("train_seconds"))
    warnings = tuple(map(str, entry.get("warnings") or ()))
    solves = tuple(_solve_row(row) for row in entry.get("solves") or ())
    key = str(entry["attention"]), int(entry["seed"]), entry.get("solver")
    return Run(*key, parameters, seconds, history, warnings, solves)


def _solve_row(row: dict[str, Any]) -> dict[str, Any]:
    keys = "epoch", "solves", "steps", "failures", "residual", "active"
    return {"layer": str(row["layer"]), **{key: number(row[key]) for key in keys}}
