"""The plots of single solves: energy and residual over solver time, attention maps over solver time."""

from __future__ import annotations

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
    """One row per variant: energy on the left, residual on the right, a line per layer."""
    title = "Energy and residual along the solve"
    traces = {
        name: found for name in results.variants if (found := results.trace(name)) is not None and "times" in found[1]
    }
    reading = (
        "Left, the energy E(a) = 1/2|V - Phi a|^2 + lam|a|_1 (without the constant 1/2|V|^2, so it may be negative), "
        "averaged over images and heads; it should fall. Right, the residual, the largest entry of the vector field "
        "(logarithmic axis): zero at the equilibrium. A residual that is still high at the end of the line means that "
        "the solver stopped before the equilibrium. " + " ".join(_findings(n, t) for n, (_, t) in traces.items())
    )
    if not traces:
        return Plot("energy_and_residual", title, reading, missing="No run stored a trace of its solve.")
    figure = new_figure(9, 0.3 + 3.1 * len(traces))
    for row, (name, (seed, trace)) in zip(figure.subplots(len(traces), 2, squeeze=False), traces.items(), strict=True):
        for axes, key in zip(row, ("energy", "residual"), strict=True):
            _layer_lines(axes, trace, key)
            label = "energy E(a)" if key == "energy" else "residual, max |da/dt|"
            tidy(axes, "solver time t", label, f"{literal(name)} (seed {seed}): {key}")
    return Plot("energy_and_residual", title, reading, figure)


def _series(trace: Trace, key: str) -> np.ndarray | None:
    """The (layers, T) array, or None where it is absent, all NaN or does not fit the times."""
    values = trace.get(key)
    if values is None or values.ndim != 2 or values.shape[1] != len(trace["times"]) or not np.isfinite(values).any():
        return None
    return values


def _layer_lines(axes: Axes, trace: Trace, key: str) -> None:
    values = _series(trace, key)
    if values is None:
        reason = "no energy:\nthis vector field does not descend one" if key == "energy" else "not stored"
        axes.text(0.5, 0.5, reason, transform=axes.transAxes, ha="center", va="center", fontsize=10, color="#555555")
        axes.set_axis_off()
        return
    if key == "residual":
        values = np.where(values > 0, values, np.nan)
        axes.set_yscale("log")
    times = trace["times"]
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
    axes.legend(fontsize=SMALL, frameon=False, ncols=2 if len(values) > 3 else 1, handlelength=3)


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
    for panels, (label, image, maps, other) in zip(grid, rows, strict=True):
        pictures = [maps[i] for i in chosen]
        low, high = _limits(pictures)
        _picture(panels[0], image, "gray", 0.0, 1.0)
        for axes, picture in zip(panels[1:], pictures, strict=False):
            _picture(axes, picture, "viridis", low, high)
        if beside and other is not None:
            _picture(panels[-1], other, "viridis", *_limits([other]))
        elif beside:
            panels[-1].set_axis_off()
        panels[0].set_ylabel(literal(label), fontsize=SMALL)
    for axes, heading in zip(grid[0], headings, strict=True):
        axes.set_title(literal(heading), fontsize=10)
    figure.colorbar(ScalarMappable(Normalize(0, 1), "viridis"), cax=bar, ticks=[0, 1])
    bar.set_yticklabels(["least", "most"], fontsize=SMALL)
    bar.set_ylabel("attention, scaled per row", fontsize=SMALL)
    slug = re.sub(r"[^A-Za-z0-9-]+", "_", name) or "attention"
    return Plot(
        f"attention_maps_{slug}", f"Attention maps over solver time: {name}", _maps_reading(name, beside, count), figure
    )


def _map_grid(rows: int, columns: int) -> tuple[Figure, np.ndarray, Axes]:
    """Square panels with fixed margins in inches (a computed layout takes seconds for so many), and a colour bar."""
    panel, gap, left, right, top, bottom = 1.05, 0.08, 0.35, 1.0, 0.35, 0.1
    width = left + columns * (panel + gap) + right
    height = top + rows * (panel + gap) + bottom
    figure = new_figure(width, height)
    figure.set_layout_engine("none")
    space = {"left": left / width, "right": 1 - right / width, "top": 1 - top / height, "bottom": bottom / height}
    grid = figure.subplots(rows, columns, squeeze=False, gridspec_kw={**space, "wspace": gap, "hspace": gap})
    bar_height = min(2.5, height - top - bottom)
    bar = figure.add_axes((1 - 0.85 * right / width, 0.5 - bar_height / height / 2, 0.12 / width, bar_height / height))
    return figure, grid, bar


def _maps_reading(name: str, beside: bool, count: int) -> str:
    text = (
        f"How strongly each token is attended to in the last layer of {name} (one square per token of its grid), for a "
        "few test images, clean and corrupted. "
    )
    if count > 1:
        text += (
            "Solver time increases from left to right; the colours of a row share one scale, so brightness can be "
            "compared along it. Attention that stays on the garment on the corrupted row is what the recurrence is "
            "meant to achieve. "
        )
    if beside:
        text += f"The last column is the {BASELINE} model on the same image, on a scale of its own. "
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


def _limits(pictures: Sequence[np.ndarray]) -> tuple[float, float]:
    values = np.concatenate([np.ravel(picture) for picture in pictures])
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low = float(finite.min())
    return low, max(float(finite.max()), low + 1e-12)


def _picture(axes: Axes, picture: np.ndarray, colours: str, low: float, high: float) -> None:
    axes.imshow(picture, cmap=colours, vmin=low, vmax=high, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
