"""What all plots share: figures without global state, a colour-blind safe palette, labels that do not overlap."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from matplotlib.transforms import Bbox

# Okabe and Ito's palette without yellow, which is hardly visible on white; black is for the baseline.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("^", "D", "v", "o", "p", "<", ">")
DASHES = ("-", "--", "-.", ":")
SMALL = 9


class _NotebookFigure(Figure):
    """Displayed by Jupyter as a picture, without pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """A figure without global state, on the Agg canvas; width and height in inches."""
    figure = _NotebookFigure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def literal(text: str) -> str:
    """`text` escaped: matplotlib reads $ as mathematics and drops legend labels that start with an underscore."""
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def tidy(axes: Axes, xlabel: str = "", ylabel: str = "", title: str = "") -> None:
    """Labels, a light grid, no frame at the top and right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=SMALL)
    axes.set_xlabel(xlabel, fontsize=10)
    axes.set_ylabel(ylabel, fontsize=10)
    axes.set_title(title, fontsize=10.5, loc="left")


def plain_log_axis(axis: Axis, low: float, high: float) -> None:
    """Label an axis of less than two decades by plain numbers 1, 2, 5, 10, ..., of less than one by all digits; others
    keep powers of ten."""
    if high < 100 * low:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high >= 10 * low else range(1, 10)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def log_cost_axis(axes: Axes, costs: Sequence[float]) -> None:
    """A logarithmic horizontal axis labelled by plain numbers."""
    low, high = min(costs), max(costs)
    axes.set_xscale("log")
    axes.set_xlim(low / 1.6, high * 1.9)
    steps = [base * 10.0**power for power in range(-5, 6) for base in (1, 2, 5)]
    ticks = [step for step in steps if low / 1.6 <= step <= high * 1.9]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def place_labels(
    axes: Axes, points: Sequence[tuple[float, float]], texts: Sequence[str], obstacles: Sequence[float]
) -> None:
    """Write each text beside its point, where it overlaps the fewest other texts, points and horizontal lines.

    Args:
        axes: of a figure whose layout is final (after `figure.canvas.draw()`).
        points: in data units.
        texts: one per point.
        obstacles: heights of horizontal lines, in data units.
    """
    canvas: Any = axes.figure.canvas  # Agg's, which has a renderer
    renderer = canvas.get_renderer()
    per_point = axes.figure.dpi / 72
    centres = axes.transData.transform(np.asarray(points, dtype=float).reshape(-1, 2))
    taken = [Bbox.from_bounds(x - 8, y - 8, 16, 16) for x, y in centres]
    taken += [Bbox.from_bounds(0, axes.transData.transform((1.0, y))[1] - 3, 1e5, 6) for y in obstacles]
    taken += [text.get_window_extent(renderer) for text in axes.texts]
    frame = axes.get_window_extent(renderer)
    for i in sorted(range(len(points)), key=lambda i: -points[i][1]):
        label = axes.annotate(literal(texts[i]), points[i], fontsize=SMALL, va="center", zorder=5)
        size = label.get_window_extent(renderer)
        boxes = {offset: _box(centres[i], offset, size, per_point) for offset in _OFFSETS}
        best = min(
            boxes, key=lambda offset: _clutter(boxes[offset], taken, frame) + 0.01 * float(np.hypot(*offset[:2]))
        )
        label.remove()
        label = axes.annotate(
            literal(texts[i]),
            points[i],
            best[:2],
            textcoords="offset points",
            ha=best[2],
            va="center",
            fontsize=SMALL,
            zorder=5,
            arrowprops={"arrowstyle": "-", "color": "#888888", "lw": 0.6, "shrinkA": 0, "shrinkB": 3},
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.5},
        )
        taken.append(boxes[best])


Offset = tuple[float, float, str]
# Right and up in points, and the alignment; the preferred ones first.
_RISES = (12, -12, 24, -24, 36, -36, 50, -50)
_OFFSETS: tuple[Offset, ...] = (
    (9, 0, "left"),
    (-9, 0, "right"),
    *((dx, rise, align) for rise in _RISES for dx, align in ((0, "center"), (14, "left"), (-14, "right"))),
)


def _box(centre: np.ndarray, offset: Offset, size: Bbox, per_point: float) -> Bbox:
    """The box, in pixels, of a text of `size` at an offset from `centre`."""
    shift = {"left": 0.0, "center": -size.width / 2, "right": -size.width}[offset[2]]
    left, middle = centre[0] + offset[0] * per_point + shift, centre[1] + offset[1] * per_point
    return Bbox.from_bounds(left, middle - size.height / 2, size.width, size.height)


def _clutter(box: Bbox, taken: Sequence[Bbox], frame: Bbox) -> float:
    outside = box.x1 > frame.x1 or box.x0 < frame.x0 or box.y1 > frame.y1 or box.y0 < frame.y0
    return 5.0 * sum(box.overlaps(other) for other in taken) + 10.0 * outside
