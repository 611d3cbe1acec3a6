"""Work-precision diagrams: error against cost of several solvers, on a layer and its input."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import solvers as _solvers
from solvers import Status
from vars_ode.analysis.equilibrium import find_equilibrium
from vars_ode.analysis.measurement import Measurement, number
from vars_ode.analysis.order import reference_state
from vars_ode.analysis.problems import InitialValueProblem, problem_of, relative_error
from vars_ode.measuring import cost_of
from vars_ode.plotting import COLOURS, DASHES, MARKERS, literal, new_figure, tidy

Reference = Literal["trajectory", "equilibrium"]
TRAJECTORY_STEPS = (3, 5, 10, 20, 40, 80)
TRAJECTORY_TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
EQUILIBRIUM_STEPS = (4, 10, 20, 50, 100, 200, 400)


@dataclass(frozen=True)
class Point:
    """One solve.

    Attributes:
        solver: name or class.
        setting: the option that was varied, such as "num_steps=8".
        level: its value as a number, to order by.
        error: of the code, |a - reference|_2 / |reference|_2, the mean over problems; infinite if the solve diverged.
        worst_error: the maximum over problems.
        output_error: as `error`, of the output; NaN without a read-out.
        evaluations: of the field, averaged over samples.
        milliseconds, peak_kib: of the solve of the whole batch.
        status: the worst of the samples.
    """

    solver: str
    setting: str
    level: float
    error: float
    worst_error: float
    output_error: float
    evaluations: float
    milliseconds: float
    peak_kib: float
    status: str


@dataclass(frozen=True)
class WorkPrecision(Measurement):
    """Errors and costs of several solvers at several settings.

    Attributes:
        points: solver by solver, with increasing cost.
        reference: "trajectory" or "equilibrium".
        dtype: of the solves; the reference is in float64.
        notes: on solvers that are missing.
    """

    points: tuple[Point, ...]
    reference: Reference
    dtype: str
    notes: tuple[str, ...] = ()

    def findings(self) -> list[str]:
        reached = [point for point in self.points if math.isfinite(point.error)]
        if not reached:
            return ["No solver gave a finite result."]
        best = min(reached, key=lambda point: point.error)
        return [
            f"Closest to the {self.reference}: {best.solver} ({best.setting}), with an error of {best.error:.2g} for "
            f"{best.evaluations:.0f} field evaluations and {_whole(best.milliseconds)} ms."
        ]

    def to_rows(self) -> list[dict[str, Any]]:
        rows = [dataclasses.asdict(point) for point in self.points]
        return [{"reference": self.reference, **row, "output_error": number(row["output_error"])} for row in rows]

    def plot(self) -> Figure:
        """Error over evaluations, time and memory; a line per solver where the cost is a count.

        Times vary from run to run, so that a line through them would show what is not there.
        """
        figure = new_figure(10.5, 4.0)
        costs = {"evaluations": "field evaluations", "milliseconds": "time (ms)", "peak_kib": "peak memory (KiB)"}
        grid = figure.subplots(1, 3, sharey=True)
        for axes, (cost, label) in zip(grid, costs.items(), strict=True):
            self._panel(axes, cost)
            what = "trajectory's end" if self.reference == "trajectory" else "equilibrium"
            tidy(axes, label, f"relative error to the {what}" if axes is grid[0] else "")
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside upper center", ncols=min(5, len(labels)), frameon=False, fontsize=10
        )
        return figure

    def _panel(self, axes: Axes, cost: str) -> None:
        for i, name in enumerate(dict.fromkeys(point.solver for point in self.points)):
            own = [point for point in self.points if point.solver == name]
            drawable = [p for p in own if math.isfinite(p.error) and p.error > 0]
            diverged = len(own) - sum(math.isfinite(p.error) for p in own)
            axes.plot(
                [getattr(p, cost) for p in drawable],
                [p.error for p in drawable],
                color=COLOURS[i % len(COLOURS)],
                marker=MARKERS[i % len(MARKERS)],
                ls=DASHES[i % len(DASHES)] if cost == "evaluations" else "none",
                mfc="white",
                ms=6,
                mew=1.5,
                label=literal(name) + (f" ({diverged} diverged)" if diverged else ""),
            )
        if cost == "peak_kib":  # similar for all solvers, so on a linear axis from 0
            axes.set_xlim(0, 1.1 * max((point.peak_kib for point in self.points), default=1.0) or 1.0)
        else:
            axes.set_xscale("log")
        axes.set_yscale("log")
        if all(not math.isfinite(p.error) or p.error <= 0 for p in self.points):
            axes.text(0.5, 0.5, "no finite error", transform=axes.transAxes, ha="center", va="center")


def _whole(number: float) -> str:
    """Two digits, and no power of ten for a hundred or more."""
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def work_precision(
    subject: nn.Module | InitialValueProblem,
    x: Tensor | None = None,
    solvers: Sequence[str | _solvers.Solver] = ("euler", "heun", "rk4", "dopri5"),
    reference: Reference = "trajectory",
    *,
    steps: Sequence[int] | None = None,
    tolerances: Sequence[float] = TRAJECTORY_TOLERANCES,
    dtype: torch.dtype | None = None,
    repeats: int = 3,
    reference_code: Tensor | None = None,
) -> WorkPrecision:
    """Solve one problem by many solvers and compare each with a reference in float64.

    A solver given by name is run at several settings, one given as an object as it is. For reference="trajectory", the
    state at t1, the settings are step counts, or tolerances for adaptive methods. For reference="equilibrium" they are
    horizons t1, with the field's own step (dt = 1), or numbers of iterations for relaxation methods; a method of s
    stages gets horizons shorter by s, so that all fixed-step methods take the same numbers of evaluations.

    Args:
        subject: a VARS layer, or an `InitialValueProblem`.
        x: the layer's input, (batch, tokens, dim).
        solvers: names and objects.
        reference: what errors are relative to.
        steps: step counts for "trajectory", numbers of evaluations for "equilibrium".
        tolerances: rtol of adaptive methods; atol is a tenth of it.
        dtype: of the solves; by default the layer's own, whose rounding limits the accuracy.
        repeats: runs of each solve, of which the fastest is reported.
        reference_code: the code of the reference, (batch, ...); computed if None.

    Raises:
        ValueError: for a solver that cannot reach the reference, or if no equilibrium was found.
    """
    _solvers.checks.one_of("reference", reference, get_args(Reference))
    if isinstance(solvers, str | _solvers.Solver) or not solvers:
        raise ValueError(f"solvers must be a sequence of names or solver objects, got {solvers!r}")
    problem = problem_of(subject, x)
    problem = problem if dtype is None else problem.to(dtype)
    trials = [trial for choice in solvers for trial in _series(choice, reference, problem.t1, steps, tolerances)]
    expected = reference_code if reference_code is not None else _reference_code(problem, reference)
    points = tuple(_solve(problem, trial, expected, repeats) for trial in trials)
    return WorkPrecision(points, reference, str(problem.y0.dtype).removeprefix("torch."))


class _Trial(NamedTuple):
    solver: _solvers.Solver
    name: str
    setting: str
    level: float
    t1: float


def _series(
    choice: str | _solvers.Solver, reference: Reference, t1: float, steps: Sequence[int] | None, tols: Sequence[float]
) -> list[_Trial]:
    solver = _solvers.get(choice)
    name = choice if isinstance(choice, str) else type(solver).__name__
    if reference == "trajectory" and (solver.reaches_equilibrium or math.isinf(t1)):
        what = (
            f"{name} returns the limit t1 -> inf"
            if solver.reaches_equilibrium
            else f"a trajectory has no state at t1={t1}"
        )
        raise ValueError(f'{what}; use reference="equilibrium", or a finite t1 and solvers such as "rk4"')
    if not isinstance(choice, str):
        return [_Trial(solver, name, str(solver), 0.0, t1)]
    if reference == "equilibrium":
        return [_towards_equilibrium(solver, name, count) for count in steps or EQUILIBRIUM_STEPS]
    if isinstance(solver, _solvers.FixedStepSolver):
        counts = steps or TRAJECTORY_STEPS
        return [_Trial(_solvers.get(solver, num_steps=n), name, f"num_steps={n}", float(n), t1) for n in counts]
    if isinstance(solver, _solvers.AdaptiveSolver):
        return [
            _Trial(_solvers.get(solver, rtol=r, atol=0.1 * r), name, f"rtol={r:g}", -math.log10(r), t1) for r in tols
        ]
    return [_Trial(solver, name, str(solver), 0.0, t1)]


def _towards_equilibrium(solver: _solvers.Solver, name: str, count: int) -> _Trial:
    _solvers.checks.positive_int("steps", count)
    if solver.reaches_equilibrium:
        capped = _solvers.get(solver, max_steps=count, rtol=0.0, atol=0.0)
        return _Trial(capped, name, f"max_steps={count}", float(count), math.inf)
    horizon = max(1, count // getattr(solver, "evals_per_step", 1))
    return _Trial(solver, name, f"t1={horizon}", float(horizon), float(horizon))


def _reference_code(problem: InitialValueProblem, reference: Reference) -> Tensor:
    if reference == "trajectory":
        exact = problem.to(torch.float64)
        return exact.code(reference_state(exact))
    return find_equilibrium(problem).require().code


def _solve(problem: InitialValueProblem, trial: _Trial, expected: Tensor, repeats: int) -> Point:
    solution, cost = cost_of(lambda: problem.solve(trial.solver, trial.t1), problem.y0.device, repeats)
    code = problem.code(solution.y1)
    errors = _finite(relative_error(code, expected))
    output, wanted = problem.output(code), problem.output(expected)
    output_error = math.nan
    if output is not None and wanted is not None:
        output_error = float(_finite(relative_error(output, wanted)).mean())
    return Point(
        solver=trial.name,
        setting=trial.setting,
        level=trial.level,
        error=float(errors.mean()),
        worst_error=float(errors.max()),
        output_error=output_error,
        evaluations=float(solution.stats["num_field_evals"].double().mean()),
        milliseconds=cost.milliseconds,
        peak_kib=cost.peak_kib,
        status=Status(int(solution.status.max())).name,
    )


def _finite(errors: Tensor) -> Tensor:
    return torch.where(errors.isfinite(), errors, math.inf)
