"""The pictures of the page on robustness."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vars_ode.plotting import COLOURS, DASHES, MARKERS, SMALL, new_figure, tidy
from vars_ode.study.findings import BASELINE, Findings, Maps

TITLES = {"fashion-mnist": "Fashion-MNIST", "digits": "digits"}
SHOWN = {
    "clean": "clean images",
    "corrupted": "mean of the corruptions",
    "kept": "kept under corruption",
    "attacks": "all attacks together",
}
READING = (
    "Each dot is the mean difference to softmax attention at equal parameters and budget, with its 95 % interval over "
    "seeds "
    "and images; filled where it holds after Holm's correction for all comparisons of the data set."
)
LINES = ("vars-sd-factor", "vars-sd-coupling", "vars-sd", "vars-d-factor", "vars-s")


def draw(studies: dict[str, Findings]) -> dict[str, Figure]:
    first = next(iter(studies.values()))
    found = {"robustness": differences(studies), "robustness_trainings": trainings(studies)}
    if Maps(first.archive, "article").arms:
        found["robustness_objects"] = objects(first)
    if any(rows for arm in LINES if arm in first.archive.arms for rows in first.archive.details(arm, "gap")):
        found["robustness_gap"] = gap(first)
    return found


@cache
def csv_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def differences(studies: dict[str, Findings]) -> Figure:
    """A panel per measure, a row per attention, a colour per data set."""
    arms = [arm for arm in next(iter(studies.values())).main if arm != BASELINE]
    figure = new_figure(11.0, 1.5 + 0.36 * len(arms))
    grid = figure.subplots(1, len(SHOWN), sharey=True)
    for axes, (measure, title) in zip(grid, SHOWN.items(), strict=True):
        axes.axvline(0, color="#444444", lw=1)
        for rank, (name, study) in enumerate(studies.items()):
            style: dict[str, Any] = {"color": COLOURS[rank], "marker": MARKERS[rank]}
            for y, arm in enumerate(arms):
                if (arm, measure) not in study.against_baseline:
                    continue
                found = study.against_baseline[arm, measure]
                place = y + 0.24 * (rank - (len(studies) - 1) / 2)
                low, high = 100 * found.difference.low, 100 * found.difference.high
                axes.plot([low, high], [place, place], color=COLOURS[rank], lw=1.6)
                face = COLOURS[rank] if found.holds else "white"
                axes.plot(100 * found.difference.mean, place, ls="none", ms=6.5, mfc=face, mew=1.5, **style)
            axes.plot([], [], ls="none", ms=6.5, label=TITLES[name] if axes is grid[0] else None, **style)
        tidy(axes, "points", title=title)
        axes.title.set_fontsize(10)
    grid[0].set_yticks(range(len(arms)), arms, fontsize=SMALL)
    grid[0].invert_yaxis()
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=10)
    return figure


def trainings(studies: dict[str, Findings]) -> Figure:
    """Every training: clean against corrupted accuracy."""
    figure = new_figure(5.0 * len(studies), 4.6)
    grid = figure.subplots(1, len(studies), squeeze=False)[0]
    for axes, (name, study) in zip(grid, studies.items(), strict=True):
        for i, arm in enumerate(study.main):
            values = [100 * study.by_seed(arm, measure) for measure in ("clean", "corrupted")]
            colour = "#000000" if arm == BASELINE else COLOURS[i % len(COLOURS)]
            axes.plot(*values, ls="none", marker=MARKERS[i % len(MARKERS)], color=colour, mfc="none", ms=5.5, label=arm)
        tidy(axes, "accuracy on clean images (%)", "mean of the corruptions (%)", TITLES[name])
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=SMALL)
    return figure


def objects(study: Findings) -> Figure:
    """Average precision over solver time, a panel per kind of pictures."""
    kinds = {"article": "one article", "noisy": "one article, with noise", "two": "two small articles"}
    figure = new_figure(10.5, 3.7)
    grid = figure.subplots(1, len(kinds))
    for axes, (kind, title) in zip(grid, kinds.items(), strict=True):
        maps = Maps(study.archive, kind)
        axes.axhline(float(maps.chance.mean()), color="#777777", ls="--", lw=1.2, label="uniform map")
        if BASELINE in maps.arms:
            axes.axhline(maps.precision(BASELINE, 1.0), color="#000000", ls=":", lw=1.6, label=BASELINE)
        for i, arm in enumerate(arm for arm in LINES if arm in maps.arms):
            times = maps.times(arm)
            by_seed = np.array([maps.scores(arm, t, study.archive.seeds(arm)).mean(1) for t in times])
            style = {"color": COLOURS[i], "ls": DASHES[i % len(DASHES)]}
            axes.plot(times, by_seed.mean(1), marker=MARKERS[i], ms=5, mfc="white", lw=1.5, label=arm, **style)
            axes.fill_between(times, by_seed.min(1), by_seed.max(1), color=COLOURS[i], alpha=0.10, lw=0)
        tidy(axes, "solver time t (trained at 5)", title=title)
    grid[0].set_ylabel("average precision of the map", fontsize=10)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=SMALL)
    return figure


def gap(study: Findings) -> Figure:
    """The distance from the single-step limit over the steps, without sparsity and with it."""
    figure = new_figure(8.5, 3.5)
    grid = figure.subplots(1, 2)
    for i, arm in enumerate(a for a in LINES if a in study.archive.arms and study.archive.details(a, "gap")[0]):
        tables = study.archive.details(arm, "gap")
        for dashes, trained in (("--", False), ("-", True)):
            rows = [[row for row in rows if (row["sparsity"] > 0) == trained] for rows in tables]
            times = [row["time"] for row in rows[0]]
            for axes, key in zip(grid, ("to_limit", "limit_cosine"), strict=True):
                mean = np.mean([[row[key] for row in each] for each in rows], axis=0)
                label = f"{arm}, {'as trained' if trained else 'lam = 0'}"
                axes.plot(
                    times, mean, color=COLOURS[i], ls=dashes, marker=MARKERS[i], ms=5, mfc="white", lw=1.5, label=label
                )
    tidy(grid[0], "Euler steps", "|o - o'| / |o'|", "distance from the single step")
    tidy(grid[1], "Euler steps", "cosine of the angle", "direction of the outputs")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=SMALL)
    return figure
