"""The measures of a study one after the other, and its folder."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import solvers as _solvers
from vars_ode.analysis.basin import basin
from vars_ode.analysis.equilibrium import Equilibrium, find_equilibrium
from vars_ode.analysis.foreground import image_foreground, infer_grid
from vars_ode.analysis.maps import AttentionMaps, attention_maps
from vars_ode.analysis.measurement import Measurement
from vars_ode.analysis.order import Convergences, order_of_convergence, reference_state
from vars_ode.analysis.problems import InitialValueProblem, Layer, layer_inputs, pose
from vars_ode.analysis.single_step import single_step_gap
from vars_ode.analysis.trace import trace
from vars_ode.analysis.work_precision import Point, Reference, WorkPrecision, work_precision
from vars_ode.attention import VARSAttention
from vars_ode.building import Subject
from vars_ode.report.convergence import Piece, write_page

MARKER = "convergence.json"
PAGE = "index.html"
DEFAULT_SOLVERS = ("euler", "rk4", "nesterov")
_TRACE_HORIZON = 40.0
_LARGE = 50_000  # entries of a state from which on fewer steps are taken


@dataclasses.dataclass(frozen=True)
class Study:
    """What a study is about.

    Attributes:
        subject: the model with its input.
        layer: the name of the layer looked at.
        solvers: names, checked.
    """

    subject: Subject
    layer: str
    solvers: tuple[str, ...]

    @property
    def place(self) -> tuple[Layer, Tensor]:
        return layer_inputs(self.subject.model, self.subject.inputs)[self.layer]


def run_convergence(
    folder: Path, subject: Subject, solvers: Sequence[str], layer: str | None, facts: dict[str, Any]
) -> Path:
    """Measure everything and write it: a CSV and a PNG per measure, and a page; returns the page's path.

    Args:
        folder: new, empty, or of an earlier study, whose files are replaced.
        subject: from `build_subject`.
        solvers: names out of `solvers.available()`.
        layer: by name; the last one by default.
        facts: what the page tells of the settings.
    """
    names = check_solvers(solvers)
    layers = list(layer_inputs(subject.model, subject.inputs))
    if layer is not None and layer not in layers:
        raise ValueError(f"there is no VARS layer {layer!r} in this model; its layers: {', '.join(layers)}")
    study = Study(subject, layer or layers[-1], names)
    prepare(folder)
    pieces, written = [], [PAGE]
    steps = _steps(study)
    with tqdm(total=len(steps), desc="measuring", unit="measure", dynamic_ncols=True) as bar:
        for stem, (title, measure) in steps.items():
            bar.set_postfix_str(title)
            piece = _measure(stem, title, measure)
            if piece.found is not None:
                written += _save(folder, stem, piece.found, subject.pictures)
            pieces.append(piece)
            bar.update()
    facts = {**facts, "layer": study.layer, "solvers": list(names), "weights": subject.weights}
    (folder / MARKER).write_text(json.dumps({**facts, "files": written}, indent=1), encoding="utf-8")
    return write_page(folder / PAGE, folder, pieces, facts)


def check_solvers(names: Sequence[str]) -> tuple[str, ...]:
    """The names without repetitions; a ValueError that lists what there is for one that is unknown."""
    for name in names:
        if not name:
            raise ValueError(
                f"an empty solver name; --solvers takes names with commas between: {','.join(DEFAULT_SOLVERS)}"
            )
        _solvers.get(name)
    if not names:
        raise ValueError("name at least one solver, such as --solvers euler")
    return tuple(dict.fromkeys(names))


def prepare(folder: Path) -> None:
    """Make the folder, or clear an earlier study's files out of it; a ValueError where it belongs to something else."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder with --out")
    try:
        if (folder / MARKER).is_file():
            for name in _own_files(folder / MARKER):
                (folder / name).unlink(missing_ok=True)
        elif folder.is_dir() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty and holds no convergence study; name a new folder with --out")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).write_text(json.dumps({"files": []}), encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot write to {folder} ({error.strerror}); name another folder with --out") from error


def _own_files(marker: Path) -> list[str]:
    try:
        names = json.loads(marker.read_text(encoding="utf-8"))["files"]
        return [name for name in names if isinstance(name, str) and Path(name).name == name]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{marker} cannot be read ({error}); name another folder with --out") from error


Step = tuple[str, Callable[[], Measurement]]


def _steps(study: Study) -> dict[str, Step]:
    """File stem -> title and measure, in the order of the page. What several need is computed by the first."""
    subject, (layer, tokens) = study.subject, study.place
    problem = pose(layer, tokens)
    single = pose(layer, tokens[:1])  # curves over the cost of a solve need no more than one input
    rest = _Once(lambda: find_equilibrium(problem))
    single_rest = _Once(lambda: find_equilibrium(single))
    state = _Once(lambda: reference_state(single, 500 if single.y0.numel() > _LARGE else 1000))
    integrating = [name for name in study.solvers if not _solvers.get(name).reaches_equilibrium]
    return {
        "convergence": ("Order of convergence", lambda: _orders(single, integrating, state())),
        "work_precision_trajectory": (
            "Work-precision: the trajectory",
            lambda: _to_trajectory(single, integrating, state()),
        ),
        "work_precision_equilibrium": (
            "Work-precision: the equilibrium",
            lambda: _to_equilibrium(single, study.solvers, single_rest()),
        ),
        "trace": ("Along the solve", lambda: _trace(problem, rest())),
        "basin": ("Basin of attraction", lambda: _basin(problem, single)),
        "single_step_gap": (
            "Distance from self-attention",
            lambda: single_step_gap(subject.model, subject.inputs),
        ),
        "attention_maps": ("Attention maps over solver time", lambda: _maps(layer, tokens, subject)),
    }


class _Once:
    """Computes on the first call and remembers."""

    def __init__(self, compute: Callable[[], Any]) -> None:
        self._compute = compute
        self._value: Any = None

    def __call__(self) -> Any:
        if self._value is None:
            self._value = self._compute()
        return self._value


def _orders(problem: InitialValueProblem, names: Sequence[str], reference: Tensor) -> Convergences:
    fixed = [name for name in names if hasattr(_solvers.get(name), "num_steps")]
    if not fixed:
        raise ValueError(
            "none of the solvers is one of fixed step, such as euler or rk4, whose order could be measured"
        )
    return Convergences(
        tuple(
            order_of_convergence(problem.field, problem.y0, problem.t1, problem.args, name, reference=reference)
            for name in fixed
        )
    )


def _to_trajectory(problem: InitialValueProblem, names: Sequence[str], reference: Tensor) -> Measurement:
    if not names:
        raise ValueError("all of the solvers return the equilibrium and follow no trajectory")
    code = problem.to(torch.float64).code(reference)
    return _solver_by_solver(problem, names, "trajectory", code)


def _to_equilibrium(problem: InitialValueProblem, names: Sequence[str], rest: Equilibrium) -> Measurement:
    code = rest.require().code
    return _solver_by_solver(problem, names, "equilibrium", code)


def _solver_by_solver(
    problem: InitialValueProblem, names: Sequence[str], reference: Reference, code: Tensor
) -> WorkPrecision:
    """`work_precision` with a note in place of a solver that cannot take the problem on."""
    points: list[Point] = []
    notes = []
    for name in names:
        try:
            points += work_precision(problem, None, (name,), reference, reference_code=code, repeats=1).points
        except ValueError as error:
            notes.append(f"{name}: {error}")
    if not points:
        raise ValueError(" ".join(notes))
    return WorkPrecision(tuple(points), reference, str(problem.y0.dtype).removeprefix("torch."), tuple(notes))


def _trace(problem: InitialValueProblem, rest: Equilibrium) -> Measurement:
    """Euler with dt = 1, ISTA, whatever the layer's own solver: in its steps spectral radius and energy mean most."""
    horizon = max(_TRACE_HORIZON, problem.t1 if math.isfinite(problem.t1) else 0.0)
    iterations = 10 if problem.y0.numel() > _LARGE else 60
    return trace(problem, solver=_solvers.Euler(dt=1.0), t1=horizon, rest=rest, power_iterations=iterations)


def _basin(problem: InitialValueProblem, single: InitialValueProblem) -> Measurement:
    if problem.y0.numel() > _LARGE:
        return basin(single, num_starts=3, max_steps=1000)
    return basin(problem, num_starts=4, max_steps=5000)


def _maps(layer: Layer, tokens: Tensor, subject: Subject) -> Measurement:
    if not isinstance(layer, VARSAttention):
        raise ValueError("a convolutional layer mixes tokens by its filters and has no attention map")
    grid, _ = infer_grid(tokens.shape[1])
    return attention_maps(layer, tokens, foreground=image_foreground(subject.pictures, grid), grid=grid)


def _measure(stem: str, title: str, measure: Callable[[], Measurement]) -> Piece:
    try:
        return Piece(stem, title, measure())
    except (ValueError, RuntimeError, torch.OutOfMemoryError) as error:  # the others go on; the page tells why
        return Piece(stem, title, missing=str(error))


def _save(folder: Path, stem: str, found: Measurement, pictures: Tensor) -> list[str]:
    names = [f"{stem}.csv", f"{stem}.png"]
    found.to_csv(folder / names[0])
    figure = found.plot(pictures) if isinstance(found, AttentionMaps) else found.plot()
    figure.savefig(folder / names[1], dpi=150)
    return names
