"""The plots of accuracy and of training, one function each. `draw_plots` draws all plots of a study."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from vars_ode.plotting import SMALL, literal, new_figure, tidy
from vars_ode.report.plot_style import LineStyle, Plot, legend_above, line_styles
from vars_ode.report.plots_solvers import accuracy_by_cost
from vars_ode.report.plots_traces import attention_maps, energy_and_residual
from vars_ode.statistics import Spread
from vars_ode.study.records import CLEAN, Condition, Results, readable


def draw_plots(results: Results, folder: Path) -> list[tuple[Plot, Path | None]]:
    """Draw every plot into `folder`; a plot that lacks its data comes without a path and says why."""
    folder.mkdir(parents=True, exist_ok=True)
    plots = [
        accuracy_by_corruption(results),
        accuracy_by_severity(results),
        accuracy_by_cost(results),
        energy_and_residual(results),
        *attention_maps(results),
        training_curves(results),
    ]
    drawn: list[tuple[Plot, Path | None]] = []
    for plot in plots:
        path = None
        if plot.figure is not None:
            path = folder / f"{plot.name}.png"
            plot.figure.savefig(path, dpi=150)
        drawn.append((plot, path))
    return drawn


# --- accuracy by condition -------------------------------------------------------------------------------------------


def accuracy_by_corruption(results: Results) -> Plot:
    """Clean, attacks, mean of corruptions, then each corruption: a line per attention, a dot per seed."""
    title = "Accuracy by condition"
    reading = (
        "Each row is a condition, each marker the mean over seeds; small dots are single seeds and the bar spans "
        "them. Further right is better; the axis need not start at zero. The upper panel has the summary, the lower "
        "one each corruption, averaged over its severities, with the hardest at the bottom. Where bars overlap, the "
        "seeds do not separate the attentions."
    )
    names = results.attentions
    summary = {name[0].upper() + name[1:]: conditions for name, conditions in results.measures().items()}
    single = {readable(name): conditions for name, conditions in results.corruptions.items()}
    if not names or not results.rows:
        return Plot("accuracy_by_corruption", title, reading, missing="No accuracies were measured.")
    single = dict(sorted(single.items(), key=lambda item: _mean_over_attentions(results, item[1])))
    lanes = 0.19 * len(names), 0.13 * len(names)
    heights = [len(summary) * (lanes[0] + 0.16), len(single) * (lanes[1] + 0.14)]
    figure = new_figure(8, sum(heights) + 1.7)
    styles = line_styles(names)
    if single:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=heights)
        _lanes(bottom, results, single, styles, label=False)
        tidy(bottom, "accuracy (%)", title="Each corruption, mean over severities")
    else:
        top = figure.subplots()
    _lanes(top, results, dict(reversed(summary.items())), styles, label=True)
    tidy(top, "" if single else "accuracy (%)", title="Summary")
    top.tick_params(labelbottom=True)
    top.set_xlim(*_percent_range(results))
    legend_above(figure, names, styles, line=False)
    return Plot("accuracy_by_corruption", title, reading, figure)


def _percent_range(results: Results) -> tuple[float, float]:
    """Whole tens around the accuracies, with room for the labels."""
    accuracies = [100 * row.accuracy for row in results.trained_rows()]
    return 10 * math.floor(min(accuracies) / 10 - 0.1), 10 * math.ceil(max(accuracies) / 10) + 5


def _mean_over_attentions(results: Results, conditions: Sequence[Condition]) -> float:
    means = [results.spread(name, conditions).mean for name in results.attentions]
    finite = [mean for mean in means if math.isfinite(mean)]
    return float(np.mean(finite)) if finite else 0.0


def _lanes(
    axes: Axes, results: Results, rows: dict[str, list[Condition]], styles: dict[str, LineStyle], label: bool
) -> None:
    names = results.attentions
    lane = 0.78 / len(names)
    for y, conditions in enumerate(rows.values()):
        if y % 2:
            axes.axhspan(y - 0.5, y + 0.5, color="#f3f3f3", zorder=0)
        for i, name in enumerate(names):
            spread, style = results.spread(name, conditions), styles[name]
            if not spread.count:
                continue
            height = y + 0.39 - lane * (i + 0.5)
            axes.plot([100 * spread.low, 100 * spread.high], [height] * 2, color=style.colour, lw=3, alpha=0.35)
            axes.plot(
                [100 * v for v in spread.values], [height] * spread.count, ".", color=style.colour, ms=4, alpha=0.8
            )
            axes.plot(100 * spread.mean, height, style.marker, color=style.colour, ms=6.5, mec="white", mew=0.6)
            if label:
                axes.annotate(
                    f"{100 * spread.mean:.1f}",
                    (100 * spread.high, height),
                    (7, -0.5),
                    textcoords="offset points",
                    va="center",
                    fontsize=SMALL,
                    color=style.colour,
                )
    axes.set_yticks(range(len(rows)), [literal(row) for row in rows])
    axes.set_ylim(-0.5, len(rows) - 0.5)


# --- accuracy by severity --------------------------------------------------------------------------------------------


def accuracy_by_severity(results: Results) -> Plot:
    """Mean over corruptions against severity; severity 0 is the clean test set."""
    title = "Accuracy as corruptions grow stronger"
    reading = (
        "Severity 0 is the clean test set. Each point is the mean over all corruptions of a severity and over seeds, "
        "and its bar spans the seeds; points of one severity are moved apart sideways so that all bars are visible. A "
        "flatter line is a more robust model; a line that is higher everywhere is a better one."
    )
    severities = sorted({condition.severity for condition in results.corrupted_conditions})
    if not severities:
        return Plot("accuracy_by_severity", title, reading, missing="No corruption was measured.")
    names, styles = results.attentions, line_styles(results.attentions)
    figure = new_figure(7, 4.4)
    axes = figure.subplots()
    levels = {
        s: [condition for condition in results.corrupted_conditions if condition.severity == s] for s in severities
    }
    for i, name in enumerate(names):
        spreads = {level: results.spread(name, conditions) for level, conditions in {0: [CLEAN], **levels}.items()}
        shift = 0.05 * (i - (len(names) - 1) / 2)  # beside each other, so that the bars stay visible
        _line_with_bars(axes, {level + shift: s for level, s in spreads.items() if s.count}, styles[name])
    axes.set_xticks([0, *levels], ["0\n(clean)", *map(str, levels)])
    tidy(axes, "severity", "accuracy (%)")
    legend_above(figure, names, styles)
    return Plot("accuracy_by_severity", title, reading, figure)


def _line_with_bars(axes: Axes, spreads: dict[float, Spread], style: LineStyle) -> None:
    means = [100 * s.mean for s in spreads.values()]
    below = [100 * (s.mean - s.low) for s in spreads.values()]
    above = [100 * (s.high - s.mean) for s in spreads.values()]
    errors = np.maximum([below, above], 0)
    axes.errorbar(
        list(spreads),
        means,
        yerr=errors,
        color=style.colour,
        marker=style.marker,
        ls=style.dashes,
        capsize=3,
        ms=6,
        lw=1.6,
    )


# --- training --------------------------------------------------------------------------------------------------------


def training_curves(results: Results) -> Plot:
    """Training loss, and training accuracy if stored: a thin line per seed, a line with markers for their mean."""
    title = "Training"
    reading = (
        "Training loss after each epoch: thin lines are single seeds, the marked line their mean. A lower training "
        "loss is no promise of a better test accuracy; it shows which runs had not converged or were interrupted."
    )
    keys = [
        key for key in ("loss", "train_accuracy") if any(key in e for run in results.runs.values() for e in run.history)
    ]
    if not keys:
        return Plot("training_curves", title, reading, missing="No training history was stored.")
    names, styles = results.attentions, line_styles(results.attentions)
    figure = new_figure(4.6 * len(keys) + 1.2 * (len(keys) == 1), 4.2)
    for axes, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        for name in names:
            _curves(axes, results, name, key, styles[name])
        tidy(axes, "epoch", "training loss (nats)" if key == "loss" else "training accuracy (%)")
        axes.xaxis.get_major_locator().set_params(integer=True)
    legend_above(figure, names, styles)
    return Plot("training_curves", title, reading, figure)


def _curves(axes: Axes, results: Results, name: str, key: str, style: LineStyle) -> None:
    scale = 1.0 if key == "loss" else 100.0
    by_epoch: dict[float, list[float]] = {}
    for run in (run for (attention, _), run in results.runs.items() if attention == name):
        curve = [
            (e.get("epoch", i + 1.0), scale * e[key])
            for i, e in enumerate(run.history)
            if math.isfinite(e.get(key, math.nan))
        ]
        axes.plot([e for e, _ in curve], [v for _, v in curve], color=style.colour, lw=0.7, alpha=0.5)
        for epoch, value in curve:
            by_epoch.setdefault(epoch, []).append(value)
    epochs = sorted(by_epoch)
    means = [float(np.mean(by_epoch[epoch])) for epoch in epochs]
    axes.plot(
        epochs,
        means,
        color=style.colour,
        marker=style.marker,
        ls=style.dashes,
        ms=5,
        lw=1.6,
        markevery=max(1, len(epochs) // 8),
    )
