"""`vars-ode convergence`: every measure on one model and its input, as CSV, PNG and a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from vars_ode.analysis.convergence import Piece, check_solvers, chosen_layer, measure_convergence
from vars_ode.analysis.maps import AttentionMaps
from vars_ode.analysis.measurement import Measurement
from vars_ode.analysis.subjects import Subject
from vars_ode.analysis.work_precision import WorkPrecision
from vars_ode.environment import environment
from vars_ode.files import claim_folder, write_json
from vars_ode.report import page

MARKER = "convergence.json"
PAGE = "index.html"
TITLE = "How the solve of a VARS layer converges"

READING = {
    "convergence": (
        "The error at the horizon t1 against the length of a step, both logarithmic; the slope of the line is the "
        "order. The soft threshold has kinks, and each one that is crossed within a step adds an error of dt squared: "
        "methods of higher order are more accurate here, but their error falls no faster than that of order 2."
    ),
    "work_precision_trajectory": (
        "Each marker is a solve: to the left and below is better. Errors are those of the code at t1, relative, "
        "to a reference in float64; the layer's own precision sets a floor of about 1e-7. Times vary from run to run, "
        "so that only evaluations are joined by lines."
    ),
    "work_precision_equilibrium": (
        "The same with the error to the equilibrium, the minimiser of the energy: methods that follow the flow "
        "reach it only over a long horizon, relaxation methods in fewer evaluations."
    ),
    "trace": (
        "The line is the median over inputs and heads, the band the range. Distances and residuals should fall, "
        "and the energy with them. A step contracts where its spectral radius is below 1, the dashed line; the closer "
        "it is to 1, the slower the convergence."
    ),
    "basin": (
        "Several initial states, the layer's own, zero and random ones, before and after the solve; a marker per "
        "input and head. Final states to the left of the dashed line count as the same attractor."
    ),
    "single_step_gap": (
        "The distance of each head's output from that of attention in a single step, relative to the norm of the "
        "latter. Both panels share the scale of colours. 0 means equal outputs, and 1 is the distance of an output of "
        "zero."
    ),
    "attention_maps": (
        "Attention that each token of the grid receives, over solver time; colours of a row share one scale. Below, "
        "the share of attention on the foreground (tokens whose colour differs from the border of the picture), "
        "divided by the foreground's share of the area."
    ),
}


def run_convergence(
    folder: Path, subject: Subject, solvers: Sequence[str], layer: str | None, facts: dict[str, Any]
) -> Path:
    """Measure everything and write it: a CSV and a PNG per measure, and a page; returns the page's path.

    Args:
        folder: new, empty, or of an earlier run, whose files are replaced.
        subject: from `find_subject`.
        solvers: names out of `solvers.available()`.
        layer: by name; the last one by default.
        facts: further settings that the page lists.
    """
    names = check_solvers(solvers)
    layer = chosen_layer(subject, layer)
    prepare(folder)
    pieces, written = [], [PAGE]
    with tqdm(desc="measuring", unit="measure", dynamic_ncols=True) as bar:

        def progress(title: str, total: int) -> None:
            bar.total = total
            bar.set_postfix_str(title)

        for piece in measure_convergence(subject, layer, names, progress):
            if piece.found is not None:
                written += _save(folder, piece.stem, piece.found, subject.pictures)
            pieces.append(piece)
            bar.update()
    facts = {**facts, "layer": layer, "solvers": list(names), "weights": subject.weights}
    write_json(folder / MARKER, {**facts, "files": written, "environment": environment()})
    return write_page(folder / PAGE, folder, pieces, facts)


def prepare(folder: Path) -> None:
    """Make the folder, or delete the files of an earlier run in it; a ValueError if it holds anything else."""
    if claim_folder(folder, MARKER, "convergence results"):
        for name in _own_files(folder / MARKER):
            (folder / name).unlink(missing_ok=True)
    write_json(folder / MARKER, {"files": []})


def _own_files(marker: Path) -> list[str]:
    try:
        names = json.loads(marker.read_text(encoding="utf-8"))["files"]
        return [name for name in names if isinstance(name, str) and Path(name).name == name]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{marker} cannot be read ({error}); name another folder with --out") from error


def _save(folder: Path, stem: str, found: Measurement, pictures: Tensor) -> list[str]:
    names = [f"{stem}.csv", f"{stem}.png"]
    found.to_csv(folder / names[0])
    figure = found.plot(pictures) if isinstance(found, AttentionMaps) else found.plot()
    figure.savefig(folder / names[1], dpi=150)
    return names


def write_page(path: Path, folder: Path, pieces: Sequence[Piece], facts: dict[str, Any]) -> Path:
    """Write the page; its figures are embedded. Returns `path`."""
    found = [piece for piece in pieces if piece.found is not None]
    missing = [piece for piece in pieces if piece.found is None]
    sentences = [sentence for piece in found if piece.found is not None for sentence in piece.found.findings()]
    sections = {
        "In short": page.paragraph(_subject(facts), "answer") + page.bullets(sentences),
        **{piece.title: _section(piece, folder) for piece in found},
        "Not measured": page.bullets(f"{piece.title}: {piece.missing}" for piece in missing)
        or page.paragraph("Everything was measured."),
        "Settings": page.table(
            ["Setting", "Value"], [[name, _text(value)] for name, value in facts.items()], long=True
        ),
    }
    path.write_text(page.page(TITLE, "vars-ode convergence", sections), encoding="utf-8")
    return path


def _section(piece: Piece, folder: Path) -> str:
    figure = page.figure(piece.title, folder / f"{piece.stem}.png", READING[piece.stem], heading=False)
    notes = piece.found.notes if isinstance(piece.found, WorkPrecision) else ()
    return figure + page.paragraph(f"The numbers: {piece.stem}.csv.", "caption") + page.bullets(notes)


def _subject(facts: dict[str, Any]) -> str:
    text = f"Layer {facts['layer']} of {facts['model']}, {facts['weights']}, on {facts['input']}."
    if facts["weights"] == "random weights":
        text += " An untrained model shows how its solvers converge; its attention maps mean little."
    return text


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
