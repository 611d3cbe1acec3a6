"""What a study left on disk: `results.csv`, `results.json` and the traces, and the averages taken from them.

One rule decides every mean on the report: a seed counts for a mean only when all the measurements that enter it are
there. So a run that was cut short lowers the number of seeds, and never shifts a mean towards the conditions that
happened to finish.
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
from typing import Any

import numpy as np

from vars_ode.study.statistics import Spread

BASELINE = "softmax"
CLEAN = ("clean", 0)

Cell = tuple[str, int]
"""A condition and its severity; severity 0 is `clean` or an attack, anything else a corruption."""


@dataclass(frozen=True)
class Row:
    """One line of `results.csv`: the accuracy of one trained model, under one solver, in one condition.

    NaN as an accuracy says that the solver diverged, an empty field of the file.
    """

    attention: str
    seed: int
    solver: str
    cell: Cell
    accuracy: float
    evaluations: float = math.nan
    milliseconds: float = math.nan


@dataclass(frozen=True)
class Run:
    """One training: an entry of `runs` in `results.json`."""

    attention: str
    seed: int
    solver: str | None = None
    parameters: int | None = None
    train_seconds: float = math.nan
    history: tuple[dict[str, float], ...] = ()


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

    @property
    def accuracy(self) -> Spread:
        return Spread.of(self.by_seed.values())


@dataclass
class Results:
    """Everything in a results folder; `notes` says in sentences what could not be read."""

    folder: Path
    rows: dict[tuple[str, int, str, Cell], Row] = field(default_factory=dict)
    runs: dict[tuple[str, int], Run] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def attentions(self) -> list[str]:
        """The baseline first, then the twins in the order in which they were run."""
        names = dict.fromkeys([key[0] for key in self.runs] + [key[0] for key in self.rows])
        return sorted(names, key=lambda name: name != BASELINE)

    @property
    def twins(self) -> list[str]:
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

    def trained_rows(self) -> list[Row]:
        """The measurements under the solver of the training, which are all of them but the solver sweep."""
        return [row for row in self.rows.values() if row.solver == self.trained_solver(row.attention, row.seed)]

    @property
    def attacks(self) -> list[Cell]:
        return list(dict.fromkeys(r.cell for r in self.trained_rows() if r.cell[1] == 0 and r.cell != CLEAN))

    @property
    def corrupted_cells(self) -> list[Cell]:
        return list(dict.fromkeys(row.cell for row in self.trained_rows() if row.cell[1] > 0))

    @property
    def corruptions(self) -> dict[str, list[Cell]]:
        """Corruption -> its measured severities, in ascending order."""
        names = dict.fromkeys(name for name, _ in self.corrupted_cells)
        return {name: sorted(cell for cell in self.corrupted_cells if cell[0] == name) for name in names}

    def _complete(self, attention: str, seed: int, cells: Sequence[Cell], solver: str | None) -> list[Row]:
        solver = solver or self.trained_solver(attention, seed)
        if solver is None:
            return []
        found = [self.rows.get((attention, seed, solver, cell)) for cell in cells]
        rows = [row for row in found if row is not None]
        return rows if len(rows) == len(cells) else []

    def by_seed(
        self, attention: str, cells: Sequence[Cell], solver: str | None = None, quantity: str = "accuracy"
    ) -> dict[int, float]:
        """Seed -> mean of `quantity` over `cells`, for seeds that have all of them (solver None: the trained one)."""
        means = {}
        for seed in self.seeds(attention):
            values = [getattr(row, quantity) for row in self._complete(attention, seed, cells, solver)]
            if values and all(math.isfinite(value) for value in values):
                means[seed] = float(np.mean(values))
        return means

    def spread(self, attention: str, cells: Sequence[Cell], solver: str | None = None) -> Spread:
        return Spread.of(self.by_seed(attention, cells, solver).values())

    def measures(self) -> dict[str, list[Cell]]:
        """The headline: clean, mean of the corruptions, each attack; those that were measured at all."""
        if not self.rows:
            return {}
        measures = {"clean images": [CLEAN], "mean of corruptions": self.corrupted_cells}
        measures |= {attack[0].upper(): [attack] for attack in sorted(self.attacks)}
        return {name: cells for name, cells in measures.items() if cells}

    def sweep_cells(self, attention: str) -> list[Cell]:
        """The corrupted conditions in which solvers other than the trained one were measured."""
        rows = (row for key, row in self.rows.items() if key[0] == attention and row.cell[1] > 0)
        return list(dict.fromkeys(r.cell for r in rows if r.solver != self.trained_solver(attention, r.seed)))

    def sweep(self, attention: str) -> list[SolverPoint]:
        """The solvers tried without retraining, cheapest first; empty when only the trained solver was measured."""
        trained = {self.trained_solver(attention, seed) for seed in self.seeds(attention)}
        solvers = list(dict.fromkeys(key[2] for key in self.rows if key[0] == attention))
        if not set(solvers) - trained:
            return []
        points = []
        for column, cells in (("clean", [CLEAN]), ("corrupted", self.sweep_cells(attention))):
            for solver in solvers:
                by_seed = self.by_seed(attention, cells, solver) if cells else {}
                cost = [
                    Spread.of(self.by_seed(attention, cells, solver, quantity).values()).mean
                    for quantity in ("evaluations", "milliseconds")
                ]
                if by_seed:
                    points.append(SolverPoint(attention, solver, solver in trained, column, by_seed, *cost))
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

    def _note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)


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
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            row = _row(line)
            if row is None:
                damaged += 1
            else:  # the last line wins: a resumed demo measures again what it was doing when it stopped
                results.rows[row.attention, row.seed, row.solver, row.cell] = row
    if damaged:
        results.notes.append(f"{damaged} line(s) of results.csv hold no usable accuracy and were left out.")


def _row(line: dict[str, str]) -> Row | None:
    accuracy, seed, severity = (number(line.get(name)) for name in ("accuracy", "seed", "severity"))
    attention, solver, condition = (line.get(name) for name in ("attention", "solver", "condition"))
    measured = 0 <= accuracy <= 1 or line.get("accuracy") == ""
    if not (attention and condition and measured and math.isfinite(seed) and math.isfinite(severity)):
        return None
    cost = number(line.get("evaluations")), number(line.get("milliseconds"))
    return Row(attention, int(seed), solver or "", (condition, int(severity)), accuracy, *cost)


def _read_json(results: Results) -> None:
    path = results.folder / "results.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        results.notes.append("results.json is missing or damaged: settings, parameters and training are unknown.")
        return
    results.settings = dict(content.get("settings") or {})
    results.versions = dict(content.get("versions") or {})
    results.details = {key: content[key] for key in ("started", "wall_seconds", "command") if content.get(key)}
    for entry in content.get("runs") or []:
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
    return Run(str(entry["attention"]), int(entry["seed"]), entry.get("solver"), parameters, seconds, history)
