"""The page of a study: what was found, the figures with how to read them, the settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vars_ode.analysis.basin import Basin
from vars_ode.analysis.maps import AttentionMaps
from vars_ode.analysis.measurement import Measurement
from vars_ode.analysis.order import Convergences
from vars_ode.analysis.single_step import SingleStepGap
from vars_ode.analysis.trace import Trace
from vars_ode.analysis.work_precision import WorkPrecision
from vars_ode.report import page

TITLE = "How the solve of a VARS layer converges"

READING = {
    "convergence": (
        "The error at the horizon t1 against the length of a step, both logarithmic; the slope of the line is the "
        "order. The soft threshold has kinks, each of which costs an error of dt squared when it is crossed "
        "between two steps: methods of higher order are more accurate here, but their error falls no faster than "
        "that of order 2."
    ),
    "work_precision_trajectory": (
        "Each marker is a solve: to the left and below is better. Errors are those of the code at t1, relative, "
        "to a reference in float64; the layer's own precision sets a floor of about 1e-7."
    ),
    "work_precision_equilibrium": (
        "The same with the error to the state of rest, which is the minimiser of the energy: methods that follow "
        "the flow have to follow it for long, while relaxation methods take short cuts."
    ),
    "trace": (
        "The line is the median over inputs and heads, the band the range. Distances and residuals should fall, "
        "and the energy with them. Below the dashed line, a spectral radius under 1, a step contracts; the closer "
        "to the line, the slower it comes to rest."
    ),
    "basin": (
        "Several initial states, the layer's own, zero and random ones, before and after the solve; a marker per "
        "input and head. Left of the dashed line two ends count as one."
    ),
    "single_step_gap": (
        "How far the output of each head is from that of attention in a single step, relative to its size. 0 is "
        "equality; near 1 the two have little in common, or little in size."
    ),
    "attention_maps": (
        "Where attention falls on the token grid as the solver advances; colours of a row share one scale. Below, "
        "the share of attention on the foreground (tokens whose colour differs from the border of the picture) "
        "over the share of the area that it takes."
    ),
}


class Piece(NamedTuple):
    """A measure that was taken, or why it was not; `stem` names its files."""

    stem: str
    title: str
    found: Measurement | None = None
    missing: str = ""


def write_page(path: Path, folder: Path, pieces: Sequence[Piece], facts: dict[str, Any]) -> Path:
    """Write the page; its figures are embedded. Returns `path`."""
    found = [piece for piece in pieces if piece.found is not None]
    missing = [piece for piece in pieces if piece.found is None]
    sentences = [sentence for piece in found if piece.found is not None for sentence in findings(piece.found)]
    sections = {
        "In short": page.paragraph(_subject(facts), "answer") + page.bullets(sentences),
        **{piece.title: _section(piece, folder) for piece in found},
        "Not measured": page.bullets(f"{piece.title}: {piece.missing}" for piece in missing)
        or page.paragraph("Nothing was left out."),
        "Settings": page.table(["Setting", "Value"], [[name, _text(value)] for name, value in facts.items()]),
    }
    path.write_text(page.page(TITLE, "vars-ode convergence", sections), encoding="utf-8")
    return path


def findings(found: Measurement) -> list[str]:
    """What a measure says, in sentences."""
    if isinstance(found, Convergences):
        return [f"{one.solver} converges at order {one.slope:.2f}." for one in found.parts if math.isfinite(one.slope)]
    if isinstance(found, WorkPrecision):
        return _best(found)
    if isinstance(found, Trace):
        return _trace(found)
    if isinstance(found, Basin):
        return [found.verdict]
    if isinstance(found, SingleStepGap):
        mean = float(found.to_softmax.nanmean())
        return [f"Outputs per head are at a relative distance of {mean:.2g} from softmax attention, on average."]
    if isinstance(found, AttentionMaps):
        lift = (found.concentration.mean(2) / found.chance).mean(1)
        return [
            f"Attention on the foreground is {float(lift[0]):.2f} times its area at t = {found.times[0]:g}, and "
            f"{float(lift[-1]):.2f} times at t = {found.times[-1]:g}."
        ]
    return []


def _best(found: WorkPrecision) -> list[str]:
    reached = [point for point in found.points if math.isfinite(point.error)]
    if not reached:
        return ["None of the solvers came to a finite result."]
    best = min(reached, key=lambda point: point.error)
    what = "trajectory" if found.reference == "trajectory" else "equilibrium"
    return [
        f"Closest to the {what}: {best.solver} ({best.setting}), with an error of {best.error:.2g} for "
        f"{best.evaluations:.0f} field evaluations and {best.milliseconds:.2g} ms."
    ]


def _trace(found: Trace) -> list[str]:
    sentences = [f"{note[0].upper()}{note[1:]}." for note in found.notes]
    if found.energy is not None:
        slack = 1e-9 * found.energy.abs().amax(0)
        falls = (found.energy.diff(dim=0) <= slack).all(0)
        sentences.append(f"The energy never rises in {int(falls.sum())} of {falls.numel()} problems.")
    if found.distance is not None:
        start, end = (float(found.distance[i].median()) for i in (0, -1))
        sentences.append(
            f"The distance to the equilibrium goes from {start:.2g} to {end:.2g} by t = {float(found.times[-1]):g}."
        )
    return sentences


def _section(piece: Piece, folder: Path) -> str:
    figure = page.figure(piece.title, folder / f"{piece.stem}.png", READING[piece.stem])
    left_out = piece.found.notes if isinstance(piece.found, WorkPrecision) else ()
    return figure + page.paragraph(f"The numbers: {piece.stem}.csv.", "caption") + page.bullets(left_out)


def _subject(facts: dict[str, Any]) -> str:
    text = f"Layer {facts['layer']} of {facts['model']}, {facts['weights']}, on {facts['input']}."
    if facts["weights"] == "random weights":
        text += " An untrained model shows how its solvers behave; what it attends to means little."
    return text


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
