"""The plots of single solves: energy and residual over solver time, attention maps over solver time."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from vars_ode.plotting import DASHES, MARKERS, SMALL, literal, new_figure, tidy
from vars_ode.report.plot_style import Plot
from vars_ode.study.records import BASELINE, Results

Trace = dict[str, np.ndarray]
MAX_IMAGES = 3
MAX_TIMES = 6
LAYER_COLOURS = ("#440154", "#31688e", "#1f9e89", "#7ab41d")  # dark to light, so that depth reads as a progression


# --- energy and residual ---------------------------------------------------------------------------------------------


def energy_and_residual(results: Results) -> Plot:
    """A panel of the residual per variant, then one of the energy for those that have one, a line per layer."""
    title = "Residual and energy along the solve"
    traces = {
        name: found for name in results.variants if (found := results.trace(name)) is not None and "times" in found[1]
    }
    reading = (
        "First the residual, the largest entry of the vector field: zero at the equilibrium. Where it is still high at "
        "the end of a line, the solver stopped before the equilibrium. Then, for the attentions that have one, the "
        "energy E(a) = 1/2|V - Phi a|^2 + lam|a|_1: its distance to the lowest value that the layer reaches within the "
        "time shown, so that lines fall and end where that value is reached. Both are averaged over images and heads, "
        "on logarithmic axes that panels share. " + " ".join(_findings(n, t) for n, (_, t) in traces.items())
    )
    residuals = {name: line for name, (_, trace) in traces.items() if (line := _series(trace, "residual")) is not None}
    energies = {name: line for name, (_, trace) in traces.items() if (line := _series(trace, "energy")) is not None}
    panels = [("residual", name, line) for name, line in residuals.items()]
    panels += [("energy", name, line - line.min(axis=1, keepdims=True)) for name, line in energies.items()]
    if not panels:
        return Plot("energy_and_residual", title, reading, missing="No run stored a trace of its solve.")
    rows = math.ceil(len(panels) / 2)
    figure = new_figure(8, 0.6 + 2.9 * rows)
    grid = figure.subplots(rows, 2, squeeze=False, sharex=True)
    first: dict[str, Axes] = {}
    for axes, (key, name, values) in zip(grid.flat, panels, strict=False):
        axes.set_yscale("log")
        axes.sharey(first.setdefault(key, axes))
        seed, trace = traces[name]
        _layer_lines(axes, trace["times"], np.where(values > 0, values, np.nan))
        label = "residual, max |da/dt|" if key == "residual" else "E(a) - lowest E(a)"
        tidy(axes, "solver time t", label, f"{literal(name)} (seed {seed}): {key}")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.tick_params(labelbottom=True)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=6, frameon=False, fontsize=10, handlelength=3)
    return Plot("energy_and_residual", title, reading, figure)


def _series(trace: Trace, key: str) -> np.ndarray | None:
    """The (layers, T) array, or None where it is absent, all NaN or does not fit the times."""
    values = trace.get(key)
    if values is None or values.ndim != 2 or values.shape[1] != len(trace["times"]) or not np.isfinite(values).any():
        return None
    return values


def _layer_lines(axes: Axes, times: np.ndarray, values: np.ndarray) -> None:
    for layer, line in enumerate(values):
        shade = layer / max(1, len(values) - 1) * (len(LAYER_COLOURS) - 1)
        axes.plot(
            times,
            line,
            color=LAYER_COLOURS[round(shade)],
            ls=DASHES[layer % len(DASHES)],
            marker=MARKERS[layer % len(MARKERS)],
            ms=4,
            lw=1.5,
            markevery=max(1, len(times) // 10),
            label=f"layer {layer + 1}",
        )


def _findings(name: str, trace: Trace) -> str:
    """In how many layers the energy falls, and how far the residual does, in a sentence."""
    parts = []
    energy, residual = _series(trace, "energy"), _series(trace, "residual")
    if energy is None:
        parts.append("there is no energy to show, as its vector field does not descend one")
    else:
        slack = 1e-6 * np.abs(energy).max(axis=1)
        falling = int((np.diff(energy, axis=1).max(axis=1, initial=0.0) <= slack).sum())
        parts.append(f"the energy never rises in {falling} of {len(energy)} layers")
    if residual is not None:
        ratios = residual[:, -1] / np.where(residual[:, 0] > 0, residual[:, 0], np.nan)
        if np.isfinite(ratios).any():
            parts.append(f"the residual ends at {100 * np.nanmedian(ratios):.2g} % of its start (median over layers)")
    return f"{name}: {', and '.join(parts)}." if parts else ""


# --- attention maps --------------------------------------------------------------------------------------------------


def attention_maps(results: Results) -> list[Plot]:
    """A figure per attention whose trace has maps, with the baseline's map of the same image as the last column."""
    plots = []
    found = {
        name: trace[1]
        for name in results.attentions
        if (trace := results.trace(name)) is not None and _has_maps(trace[1])
    }
    baseline = found.pop(BASELINE, None)
    if not found and baseline is not None:
        found, baseline = {BASELINE: baseline}, None
    plots += [_maps(name, arrays, baseline) for name, arrays in found.items()]
    if not plots:
        missing = "No run stored attention maps."
        plots.append(Plot("attention_maps", "Attention maps over solver time", "", missing=missing))
    return _unique(plots)


def _unique(plots: list[Plot]) -> list[Plot]:
    """With distinct file names: two attentions may get the same one, as odd characters are replaced in it."""
    seen: dict[str, int] = {}
    unique = []
    for plot in plots:
        seen[plot.name] = seen.get(plot.name, 0) + 1
        name = plot.name if seen[plot.name] == 1 else f"{plot.name}_{seen[plot.name]}"
        unique.append(Plot(name, plot.title, plot.reading, plot.figure, plot.missing))
    return unique


def _has_maps(trace: Trace) -> bool:
    maps, images = trace.get("maps_clean"), trace.get("images")
    return (
        maps is not None and images is not None and maps.ndim == 4 and images.ndim == 3 and len(maps) == len(images) > 0
    )


def _maps(name: str, trace: Trace, baseline: Trace | None) -> Plot:
    corruption = str(trace["corruption_name"]).replace("_", " ") if "corruption_name" in trace else "corrupted"
    rows = _map_rows(trace, baseline, corruption)
    count = trace["maps_clean"].shape[1]
    chosen = np.unique(np.linspace(0, count - 1, min(MAX_TIMES, count)).round().astype(int))
    times = trace.get("map_times", np.arange(count))
    beside = any(row[3] is not None for row in rows)
    headings = ["input", *([f"t = {times[i]:.3g}" for i in chosen] if count > 1 else ["attention"])]
    headings += [BASELINE] if beside else []
    figure, grid, bar = _map_grid(len(rows), len(headings))
    pictures = [
        [_relative(picture) for picture in (*maps[chosen], *([other] if beside else []))] for *_, maps, other in rows
    ]
    low, high = _scale([picture for row in pictures for picture in row if picture is not None])
    for panels, (label, image, *_), row in zip(grid, rows, pictures, strict=True):
        _picture(panels[0], image, "gray", 0.0, 1.0)
        for axes, picture in zip(panels[1:], row, strict=True):
            if picture is None:
                axes.set_axis_off()
            else:
                _picture(axes, picture, "viridis", low, high)
        panels[0].set_ylabel(literal(label.replace(" ", "\n", 1)), fontsize=SMALL)
    for axes, heading in zip(grid[0], headings, strict=True):
        axes.set_title(literal(heading), fontsize=10)
    figure.colorbar(ScalarMappable(Normalize(low, high), "viridis"), cax=bar)
    bar.tick_params(labelsize=SMALL)
    bar.set_ylabel("attention received / mean of the map", fontsize=SMALL)
    slug = re.sub(r"[^A-Za-z0-9-]+", "_", name) or "attention"
    reading = _maps_reading(name, beside, times[chosen], [row[2][chosen] for row in rows])
    return Plot(f"attention_maps_{slug}", f"Attention maps over solver time: {name}", reading, figure)


def _relative(picture: np.ndarray | None) -> np.ndarray | None:
    """A map in units of its own mean: weights shrink along the solve, and what is left is where they lie."""
    if picture is None:
        return None
    mean = float(np.mean(picture))
    return picture / mean if mean > 0 else np.zeros_like(picture)


def _scale(pictures: Sequence[np.ndarray]) -> tuple[float, float]:
    """The ends of the scale: but for one square in a hundred at each, which share its colour, all are between them."""
    values = np.concatenate([np.ravel(picture) for picture in pictures])
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = np.quantile(finite, (0.01, 0.99))
    return float(low), max(float(high), float(low) + 0.1)


def _map_grid(rows: int, columns: int) -> tuple[Figure, np.ndarray, Axes]:
    """Square panels with fixed margins in inches (a computed layout takes seconds for so many), and a colour bar."""
    panel, gap, left, right, top, bottom = 1.05, 0.08, 0.5, 1.0, 0.35, 0.1
    width = left + columns * (panel + gap) + right
    height = top + rows * (panel + gap) + bottom
    figure = new_figure(width, height)
    figure.set_layout_engine("none")
    space = {"left": left / width, "right": 1 - right / width, "top": 1 - top / height, "bottom": bottom / height}
    grid = figure.subplots(rows, columns, squeeze=False, gridspec_kw={**space, "wspace": gap, "hspace": gap})
    bar_height = min(2.5, height - top - bottom)
    bar = figure.add_axes((1 - 0.85 * right / width, 0.5 - bar_height / height / 2, 0.12 / width, bar_height / height))
    return figure, grid, bar


def _maps_reading(name: str, beside: bool, times: np.ndarray, maps: list[np.ndarray]) -> str:
    text = (
        f"How strongly each token is attended to in the last layer of {name} (one square per token of its grid), for a "
        "few test images, clean and corrupted. A square is the absolute weight of the token's value in the output, "
        "summed over all queries and averaged over heads, relative to the mean of its map: 1 is even attention. All "
        "maps share the scale. "
    )
    if len(times) > 1:
        totals = np.array([[picture.sum() for picture in row] for row in maps])
        with np.errstate(divide="ignore", invalid="ignore"):
            share = float(np.nanmean(totals[:, -1] / totals[:, 0]))
        text += (
            "Solver time increases from left to right. Attention that stays on the garment on the corrupted row is "
            "what the recurrence is meant to achieve. "
        )
        if math.isfinite(share):
            text += (
                f"The weights themselves change along the way: at t = {times[-1]:.3g} their sum is {share:.2g} times "
                f"that at t = {times[0]:.3g} (mean over these images). "
            )
    if beside:
        text += f"The last column is the {BASELINE} model on the same image. "
    return text + "These are single images; they say nothing about the average."


Line = tuple[str, np.ndarray, np.ndarray, np.ndarray | None]


def _map_rows(trace: Trace, baseline: Trace | None, corruption: str) -> list[Line]:
    """(label, image, maps over time, the baseline's map) for each image, clean and corrupted in turn."""
    rows: list[Line] = []
    kinds: list[tuple[str, str, str]] = [("clean", "images", "maps_clean"), (corruption, "corrupted", "maps_corrupted")]
    for k in range(min(MAX_IMAGES, len(trace["images"]))):
        for label, images, maps in kinds:
            if images in trace and maps in trace and len(trace[images]) > k and trace[maps].ndim == 4:
                same = baseline is not None and _same_images(trace, baseline, images, maps)
                other = baseline[maps][k][-1] if same and baseline is not None else None
                rows.append((label, trace[images][k], trace[maps][k], other))
    return rows


def _same_images(trace: Trace, baseline: Trace, images: str, maps: str) -> bool:
    theirs = baseline.get(images)
    return (
        theirs is not None
        and maps in baseline
        and baseline[maps].ndim == 4
        and theirs.shape == trace[images].shape
        and np.allclose(theirs, trace[images], atol=1e-3)
    )


def _picture(axes: Axes, picture: np.ndarray, colours: str, low: float, high: float) -> None:
    axes.imshow(picture, cmap=colours, vmin=low, vmax=high, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
