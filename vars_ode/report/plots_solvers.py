"""The plot of trained models under other solvers: accuracy against cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from vars_ode.plotting import SMALL, literal, log_cost_axis, new_figure, place_labels, tidy
from vars_ode.report.plot_style import LineStyle, Plot, line_styles
from vars_ode.statistics import Spread
from vars_ode.study.records import BASELINE, CLEAN, Condition, Results, SolverPoint, readable


def accuracy_by_cost(results: Results) -> Plot:
    """Trained models under other solvers: a row of panels per variant, clean on the left and corrupted on the right."""
    title = "The dial: another solver without retraining, accuracy against cost"
    sweeps = {name: points for name in results.variants if (points := results.sweep(name))}
    reading = (
        "Each marker is the same trained weights under another solver; the filled star is the solver that the model "
        "is set to. The horizontal axis is the solver's cost, evaluations of the vector field per layer and image "
        "(logarithmic). The thin line connects Euler's method with increasing numbers of steps of the same length, "
        "so that more steps go farther towards the equilibrium; bars span the seeds. "
        "The dashed line is softmax attention, which has no solver, and the grey band its seeds. A flat curve means "
        "that the accuracy does not depend on the solver."
    )
    if not sweeps:
        return Plot(
            "accuracy_by_cost", title, reading, missing="No solver other than those of the training was measured."
        )
    quantity = _cost_quantity([p for points in sweeps.values() for p in points])
    styles = line_styles(results.attentions)
    figure = new_figure(9, 0.8 + 3.4 * len(sweeps))
    layout: Any = figure.get_layout_engine()
    layout.set(h_pad=0.12)  # inches: labels of one row are not to touch the titles of the next
    grid = figure.subplots(len(sweeps), 2, squeeze=False, sharex=True, sharey="col")
    if costs := [_cost(p, quantity) for points in sweeps.values() for p in points if p.stable]:
        log_cost_axis(grid[0, 0], costs)
    panels = []
    for row, (name, points) in zip(grid, sweeps.items(), strict=True):
        columns = {"clean": [CLEAN], "corrupted": results.sweep_conditions(name)}
        for axes, (column, conditions) in zip(row, columns.items(), strict=True):
            here = [p for p in points if p.column == column and p.stable]
            lines = _cost_panel(axes, here, quantity, styles[name], results.spread(BASELINE, conditions))
            title_of_panel = literal(f"{name}: {_panel_name(column, conditions)}")
            last = axes.get_subplotspec().is_last_row()
            tidy(axes, _COST_LABELS[quantity] if last else "", "accuracy (%)", title_of_panel)
            panels.append((axes, here, lines))
    for axes in grid[0]:  # room for labels, but no accuracy below 0 or above 100 %
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0.0), min(high, 100.0))
    for axes, _, lines in panels:
        _name_baseline(axes, lines)
    figure.canvas.draw()  # the layout has to be final before labels can avoid each other
    figure.set_layout_engine("none")
    for axes, here, lines in panels:
        spots = [(_cost(p, quantity), 100 * p.accuracy.mean) for p in here]
        place_labels(axes, spots, [p.solver for p in here], lines)
    return Plot("accuracy_by_cost", title, reading, figure)


_COST_LABELS = {
    "evaluations": "field evaluations per layer and image",
    "milliseconds": "forward time per image (ms)",
}


def _cost_quantity(points: Sequence[SolverPoint]) -> str:
    return "evaluations" if all(math.isfinite(p.evaluations) for p in points) else "milliseconds"


def _cost(point: SolverPoint, quantity: str) -> float:
    """The cost, for a logarithmic axis; 1 where it is zero or unknown."""
    cost = float(getattr(point, quantity))
    return cost if cost > 0 else 1.0


def _name_baseline(axes: Axes, lines: Sequence[float]) -> None:
    """Say what the dashed line is, in the corner that the margin keeps free of points: on it markers would lie."""
    for height in lines:
        bottom = axes.get_ylim()[0] > 0
        axes.text(
            0.02,
            0.02 if bottom else 0.98,
            f"dashed: {BASELINE} {height:.1f} %",
            transform=axes.transAxes,
            fontsize=SMALL,
            va="bottom" if bottom else "top",
        )


def _panel_name(column: str, conditions: Sequence[Condition]) -> str:
    if column == "clean" or not conditions:
        return column
    if len(conditions) == 1:
        return f"{readable(conditions[0].name)}, severity {conditions[0].severity}"
    severities = sorted({condition.severity for condition in conditions})
    severity = f", severity {severities[0]}" if len(severities) == 1 else ""
    return f"mean of {len({condition.name for condition in conditions})} corruptions{severity}"


def _cost_panel(
    axes: Axes, points: Sequence[SolverPoint], quantity: str, style: LineStyle, baseline: Spread
) -> list[float]:
    """Draw one panel; returns the heights of its horizontal lines."""
    if not points:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color="#555555", fontsize=10)
        return []
    costs = [_cost(p, quantity) for p in points]
    euler = [(c, 100 * p.accuracy.mean) for c, p in zip(costs, points, strict=True) if p.solver.startswith("euler")]
    axes.plot(*zip(*sorted(euler), strict=True) if euler else ([], []), color=style.colour, lw=1, alpha=0.6)
    for cost, p in zip(costs, points, strict=True):
        s = p.accuracy
        errors = np.maximum([[100 * (s.mean - s.low)], [100 * (s.high - s.mean)]], 0)
        marker, size, face = ("*", 15, style.colour) if p.trained else (style.marker, 7, "white")
        axes.errorbar(
            cost,
            100 * s.mean,
            yerr=errors,
            color=style.colour,
            marker=marker,
            ms=size,
            mfc=face,
            mec=style.colour,
            capsize=3,
        )
    axes.margins(y=0.25)
    if not baseline.count:
        return []
    axes.axhspan(100 * baseline.low, 100 * baseline.high, color="#000000", alpha=0.12, lw=0)
    axes.axhline(100 * baseline.mean, color="#000000", ls="--", lw=1.1)
    return [100 * baseline.mean]
