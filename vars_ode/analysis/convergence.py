"""All measures of how the solve of a layer converges, for one model and its input."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

import solvers as _solvers
from vars_ode.analysis.basin import basin
from vars_ode.analysis.equilibrium import Equilibrium, find_equilibrium
from vars_ode.analysis.foreground import image_foreground
from vars_ode.analysis.maps import attention_maps
from vars_ode.analysis.measurement import Measurement
from vars_ode.analysis.order import Convergences, order_of_convergence, reference_state
from vars_ode.analysis.problems import InitialValueProblem, problem_of
from vars_ode.analysis.single_step import single_step_gap
from vars_ode.analysis.subjects import Subject
from vars_ode.analysis.trace import trace
from vars_ode.analysis.work_precision import Point, Reference, WorkPrecision, work_precision
from vars_ode.layer import ReconstructionLayer
from vars_ode.models import layer_inputs

DEFAULT_SOLVERS = ("euler", "rk4", "nesterov")
_TRACE_HORIZON = 40.0
_LARGE = 50_000  # entries of a state from which on fewer steps are taken


class Piece(NamedTuple):
    """A measurement, or the reason why there is none; its files are named by `stem`."""

    stem: str
    title: str
    found: Measurement | None = None
    missing: str = ""


def chosen_layer(subject: Subject, layer: str | None) -> str:
    """The name of the layer to measure, by default the last one; a ValueError for a name that is not in the model."""
    layers = list(layer_inputs(subject.model, subject.inputs))
    if layer is not None and layer not in layers:
        raise ValueError(f"there is no VARS layer {layer!r} in this model; its layers: {', '.join(layers)}")
    return layer or layers[-1]


def measure_convergence(
    subject: Subject, layer: str, solvers: Sequence[str], progress: Callable[[str, int], object]
) -> Iterator[Piece]:
    """Take one measure after the other. One that fails gives a `Piece` with the reason, and the others follow.

    Args:
        subject: the model with its input.
        layer: by name.
        solvers: names out of `solvers.available()`.
        progress: called with the title of the next measure and the number of measures.
    """
    measures = _measures(subject, layer, check_solvers(solvers))
    for stem, (title, measure) in measures.items():
        progress(title, len(measures))
        yield _measure(stem, title, measure)


def check_solvers(names: Sequence[str]) -> tuple[str, ...]:
    """The names without repetitions; a ValueError for an unknown one."""
    for name in names:
        if not name:
            raise ValueError(
                f"an empty solver name; --solvers takes names with commas between: {','.join(DEFAULT_SOLVERS)}"
            )
        _solvers.get(name)
    if not names:
        raise ValueError("name at least one solver, such as --solvers euler")
    return tuple(dict.fromkeys(names))


Measure = tuple[str, Callable[[], Measurement]]


def _measures(subject: Subject, name: str, names: Sequence[str]) -> dict[str, Measure]:
    """File stem -> title and measure, in the order of the page. Shared references are computed when first needed."""
    layer, tokens = layer_inputs(subject.model, subject.inputs)[name]
    problem = problem_of(layer, tokens)
    alone = len(tokens) == 1
    single = problem if alone else problem_of(layer, tokens[:1])  # one input is enough where many solvers are compared
    equilibrium = _Once(lambda: find_equilibrium(problem))
    single_equilibrium = equilibrium if alone else _Once(lambda: find_equilibrium(single))
    state = _Once(lambda: reference_state(single, 500 if single.y0.numel() > _LARGE else 1000))
    integrating = [name for name in names if not _solvers.get(name).reaches_equilibrium]
    return {
        "convergence": ("Order of convergence", lambda: _orders(single, integrating, state())),
        "work_precision_trajectory": (
            "Work-precision: the trajectory",
            lambda: _to_trajectory(single, integrating, state()),
        ),
        "work_precision_equilibrium": (
            "Work-precision: the equilibrium",
            lambda: _to_equilibrium(single, names, single_equilibrium()),
        ),
        "trace": ("Along the solve", lambda: _trace(problem, equilibrium())),
        "basin": ("Basin of attraction", lambda: _basin(problem, single)),
        "single_step_gap": (
            "Distance from self-attention",
            lambda: single_step_gap(subject.model, subject.inputs),
        ),
        "attention_maps": ("Attention maps over solver time", lambda: _maps(layer, tokens, subject)),
    }


class _Once:
    """A function without arguments whose result is computed at the first call and kept."""

    def __init__(self, compute: Callable[[], Any]) -> None:
        self._compute = compute
        self._value: Any = None

    def __call__(self) -> Any:
        if self._value is None:
            self._value = self._compute()
        return self._value


def _orders(problem: InitialValueProblem, names: Sequence[str], reference: Tensor) -> Convergences:
    fixed = [name for name in names if isinstance(_solvers.get(name), _solvers.FixedStepSolver)]
    if not fixed:
        raise ValueError("none of the solvers has fixed steps, as euler and rk4 have, so there is no order to measure")
    return Convergences(
        tuple(
            order_of_convergence(problem.field, problem.y0, problem.t1, problem.args, name, reference=reference)
            for name in fixed
        )
    )


def _to_trajectory(problem: InitialValueProblem, names: Sequence[str], reference: Tensor) -> Measurement:
    if not names:
        raise ValueError("all of the solvers return the equilibrium, and none of them a trajectory")
    code = problem.to(torch.float64).code(reference)
    return _solver_by_solver(problem, names, "trajectory", code)


def _to_equilibrium(problem: InitialValueProblem, names: Sequence[str], equilibrium: Equilibrium) -> Measurement:
    code = equilibrium.require().code
    return _solver_by_solver(problem, names, "equilibrium", code)


def _solver_by_solver(
    problem: InitialValueProblem, names: Sequence[str], reference: Reference, code: Tensor
) -> WorkPrecision:
    """`work_precision`, with a note in place of a solver that cannot solve the problem."""
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


def _trace(problem: InitialValueProblem, equilibrium: Equilibrium) -> Measurement:
    """A trace of ISTA, Euler with dt = 1, whatever the layer's own solver: the spectral radius is that of its step."""
    horizon = max(_TRACE_HORIZON, problem.t1 if math.isfinite(problem.t1) else 0.0)
    iterations = 10 if problem.y0.numel() > _LARGE else 60
    return trace(
        problem, solver=_solvers.Euler(dt=1.0), t1=horizon, equilibrium=equilibrium, power_iterations=iterations
    )


def _basin(problem: InitialValueProblem, single: InitialValueProblem) -> Measurement:
    if problem.y0.numel() > _LARGE:
        return basin(single, num_starts=3, max_steps=1000)
    return basin(problem, num_starts=4, max_steps=5000)


def _maps(layer: ReconstructionLayer, tokens: Tensor, subject: Subject) -> Measurement:
    grid, _ = layer.token_grid(tokens.shape[1])
    return attention_maps(layer, tokens, foreground=image_foreground(subject.pictures, grid), grid=grid)


def _measure(stem: str, title: str, measure: Callable[[], Measurement]) -> Piece:
    try:
        return Piece(stem, title, measure())
    except (ValueError, RuntimeError, torch.OutOfMemoryError) as error:  # the next measures are still taken
        return Piece(stem, title, missing=str(error))
