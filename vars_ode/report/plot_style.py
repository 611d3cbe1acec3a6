"""What the plots of a study share beside `vars_ode.plotting`: plots with captions, and a line style per attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vars_ode.plotting import COLOURS, DASHES, MARKERS, literal
from vars_ode.study.records import BASELINE


@dataclass(frozen=True)
class Plot:
    """A finished plot, or (figure None) the reason why there is none."""

    name: str
    title: str
    reading: str
    figure: Figure | None = None
    missing: str = ""


@dataclass(frozen=True)
class LineStyle:
    """Of everything that is drawn of one attention."""

    colour: str
    marker: str
    dashes: str


def line_styles(attentions: Sequence[str]) -> dict[str, LineStyle]:
    """Attention -> colour, marker and line style, the same in every plot."""
    others = [name for name in attentions if name != BASELINE]
    found = {
        name: LineStyle(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], DASHES[(i + 1) % len(DASHES)])
        for i, name in enumerate(others)
    }
    return {BASELINE: LineStyle("#000000", "s", "-"), **found}


def legend_above(figure: Figure, attentions: Sequence[str], styles: dict[str, LineStyle], line: bool = True) -> None:
    """A legend in even rows above the panels; without `line` of markers alone."""
    handles = [
        Line2D(
            [],
            [],
            color=styles[a].colour,
            marker=styles[a].marker,
            ls=styles[a].dashes if line else "none",
            markersize=6,
        )
        for a in attentions
    ]
    longest = max(len(name) for name in attentions)
    fitting = max(1, int(figure.get_figwidth() * 11 / (longest + 7)))
    columns = math.ceil(len(attentions) / math.ceil(len(attentions) / fitting))  # even rows
    names = [literal(name) for name in attentions]
    figure.legend(handles, names, loc="outside upper center", ncols=columns, frameon=False, fontsize=10, handlelength=3)
