"""The plot of trained models under other solvers: accuracy against cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from vars_ode.plotting import SMALL, literal, log_cost_axis, new_figure, place_labels, tidy
from vars_ode.report.plot_style import Look, Plot, looks
from vars_ode.study.records import BASELINE, CLEAN, Cell, Results, SolverPoint, readable


def accuracy_by_cost(results: Results) -> Plot:
    """Trained twins under other solvers: one row of panels per twin, clean on the left and corrupted on the right."""
    title = "Another solver without retraining: accuracy against cost"
    sweeps = {name: points for name in results.twins if (points := results.sweep(name))}
    reading = (
        "Each marker is the same trained weights under another solver; the filled star is the solver of the "
        "training. To the right the solver costs more evaluations of the vector field per layer and image "
        "(logarithmic axis). The thin line joins Euler's method with more and more steps; bars span the seeds. The "
        "dashed line is softmax attention, which needs no solver, and the grey band its seeds. A flat curve means "
        "that the answer does not hang on the solver."
    )
    if not sweeps:
        return Plot(
            "accuracy_by_cost", title, reading, missing="No solver other than those of the training was measured."
        )
    quantity = _cost_quantity([p for points in sweeps.values() for p in points])
    figure = new_figure(9, 0.5 + 3.3 * len(sweeps))
    grid = figure.subplots(len(sweeps), 2, squeeze=False, sharey="col")
    places = []
    for row, (name, points) in zip(grid, sweeps.items(), strict=True):
        cells = {"clean": [CLEAN], "corrupted": results.sweep_cells(name)}
        for axes, column in zip(row, cells, strict=True):
            here = [p for p in points if p.column == column]
            lines = _cost_panel(axes, here, quantity, looks(results.attentions)[name], results, cells[column])
            tidy(
                axes,
                _COST_LABELS[quantity],
                "accuracy (%)",
                f"{literal(name)}: {literal(_panel_name(column, cells[column]))}",
            )
            places.append((axes, here, lines))
    figure.canvas.draw()  # the layout has to be final before labels can avoid each other
    figure.set_layout_engine("none")
    for axes, here, lines in places:
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
    """The cost as a place on a logarithmic axis; unknown or zero cost is put at one."""
    cost = float(getattr(point, quantity))
    return cost if cost > 0 else 1.0


def _panel_name(column: str, cells: Sequence[Cell]) -> str:
    if column == "clean" or not cells:
        return column
    if len(cells) == 1:
        return f"{readable(cells[0][0])}, severity {cells[0][1]}"
    severities = sorted({cell[1] for cell in cells})
    severity = f", severity {severities[0]}" if len(severities) == 1 else ""
    return f"mean of {len({cell[0] for cell in cells})} corruptions{severity}"


def _cost_panel(
    axes: Axes, points: Sequence[SolverPoint], quantity: str, look: Look, results: Results, cells: Sequence[Cell]
) -> list[float]:
    """Draw one panel; returns the heights of its horizontal lines."""
    if not points:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color="#555555", fontsize=10)
        return []
    costs = [_cost(p, quantity) for p in points]
    euler = [(c, 100 * p.accuracy.mean) for c, p in zip(costs, points, strict=True) if p.solver.startswith("euler")]
    axes.plot(*zip(*sorted(euler), strict=True) if euler else ([], []), color=look.colour, lw=1, alpha=0.6)
    for cost, p in zip(costs, points, strict=True):
        s = p.accuracy
        errors = np.maximum([[100 * (s.mean - s.low)], [100 * (s.high - s.mean)]], 0)
        marker, size, face = ("*", 15, look.colour) if p.trained else (look.marker, 7, "white")
        axes.errorbar(
            cost,
            100 * s.mean,
            yerr=errors,
            color=look.colour,
            marker=marker,
            ms=size,
            mfc=face,
            mec=look.colour,
            capsize=3,
        )
    log_cost_axis(axes, costs)
    axes.margins(y=0.25)
    baseline = results.spread(BASELINE, cells)
    if not baseline.count:
        return []
    axes.axhspan(100 * baseline.low, 100 * baseline.high, color="#000000", alpha=0.12, lw=0)
    axes.axhline(100 * baseline.mean, color="#000000", ls="--", lw=1.1)
    axes.annotate(
        f"{BASELINE} {100 * baseline.mean:.1f} %",
        (0, 100 * baseline.mean),
        (3, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        fontsize=SMALL,
        va="bottom",
    )
    return [100 * baseline.mean]
