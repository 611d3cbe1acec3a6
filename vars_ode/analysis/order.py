"""The order at which a fixed-step solver converges, measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import solvers
from vars_ode.analysis.measurement import Measurement, number
from vars_ode.analysis.problems import InitialValueProblem
from vars_ode.plotting import COLOURS, MARKERS, literal, new_figure, plain_log_axis, tidy

DEFAULT_STEPS = (8, 16, 32, 64, 128)
_ROUNDING = 1e-13  # relative errors below it are rounding errors


@dataclass(frozen=True)
class Convergence(Measurement):
    """The error of a solver as a function of its step length.

    Attributes:
        solver: its name.
        nominal: the order that it has on smooth fields; None if the class does not state one.
        slope: the measured order, the slope of log error over log dt; NaN with fewer than two usable errors.
        steps: numbers of steps.
        dt: their lengths.
        errors: relative, |y - reference|_2 / |reference|_2 at t1; NaN for solves that diverged.
        used: which errors the line was fitted to: the finite ones above rounding.
    """

    solver: str
    nominal: int | None
    slope: float
    steps: tuple[int, ...]
    dt: tuple[float, ...]
    errors: tuple[float, ...]
    used: tuple[bool, ...]

    def to_rows(self) -> list[dict[str, Any]]:
        lines = zip(self.steps, self.dt, self.errors, self.used, strict=True)
        known = {"solver": self.solver, "nominal_order": self.nominal, "measured_order": number(self.slope)}
        return [{**known, "steps": n, "dt": dt, "error": number(error), "used": used} for n, dt, error, used in lines]

    def findings(self) -> list[str]:
        return [f"{self.solver} converges at order {self.slope:.2f}."] if math.isfinite(self.slope) else []

    def plot(self) -> Figure:
        return Convergences((self,)).plot()


@dataclass(frozen=True)
class Convergences(Measurement):
    """Several solvers on one problem."""

    parts: tuple[Convergence, ...]

    def to_rows(self) -> list[dict[str, Any]]:
        return [row for part in self.parts for row in part.to_rows()]

    def findings(self) -> list[str]:
        return [sentence for part in self.parts for sentence in part.findings()]

    def plot(self) -> Figure:
        """Errors over dt, with the fitted line of each solver."""
        figure = new_figure(6.5, 4.6)
        axes = figure.subplots()
        for i, one in enumerate(self.parts):
            colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
            dt, errors, used = (np.array(values) for values in (one.dt, one.errors, one.used))
            nominal = f" (nominal {one.nominal})" if one.nominal else ""
            label = f"{literal(one.solver)}: order {one.slope:.2f}{nominal}"
            drawable = np.isfinite(errors) & (errors > 0)
            axes.plot(dt[drawable], errors[drawable], marker, color=colour, ms=7, mfc="white", mew=1.5, label=label)
            if math.isfinite(one.slope):
                level = np.log(errors[used]).mean() - one.slope * np.log(dt[used]).mean()
                axes.plot(dt[used], np.exp(level) * dt[used] ** one.slope, color=colour, lw=1.2)
        axes.set_xscale("log")
        axes.set_yscale("log")
        lengths = [length for one in self.parts for length in one.dt]
        plain_log_axis(axes.xaxis, min(lengths), max(lengths))
        tidy(axes, "step dt", "relative error at t1", "Order of convergence (lines: fitted)")
        axes.legend(fontsize=9, frameon=False, loc="best")
        return figure


def order_of_convergence(
    field: solvers.Field,
    y0: Tensor,
    t1: float,
    args: Any = None,
    solver: str | solvers.Solver = "rk4",
    *,
    steps: Sequence[int] = DEFAULT_STEPS,
    reference: Tensor | None = None,
) -> Convergence:
    """Fit p in |y_dt(t1) - y(t1)| = C dt^p, everything in float64.

    On a field with kinks, such as the soft threshold has, the measured order is at most 2 if trajectories cross them:
    between kinks the field is linear, and each crossing adds an error of dt^2.

    Args:
        field, y0, t1, args: as for `solvers.solve`.
        solver: a fixed-step method, by name or as an object; its own step count is not used.
        steps: numbers of steps, at least two different ones.
        reference: y(t1); by default from `reference_state`, in sixteen times as many steps.
    """
    chosen = _fixed_step(solver)
    steps = _check_steps(steps)
    problem = InitialValueProblem(field, y0, args, float(t1)).to(torch.float64)
    expected = reference_state(problem, 16 * max(steps)) if reference is None else reference.double()
    errors = []
    for count in steps:
        y1 = problem.solve(solvers.get(chosen, num_steps=count, dt=None)).y1
        errors.append(_relative(y1, expected))
    dt = tuple(abs(float(t1)) / count for count in steps)
    used = tuple(math.isfinite(error) and error > _ROUNDING for error in errors)
    slope = _fit(dt, errors, used)
    name = solver if isinstance(solver, str) else type(chosen).__name__
    return Convergence(name, getattr(chosen, "order", None), slope, steps, dt, tuple(errors), used)


def reference_state(problem: InitialValueProblem, num_steps: int = 2000) -> Tensor:
    """y(t1) in float64 by RK4 in many steps.

    Not by a method with error control: a state of thousands of entries crosses a kink of the soft threshold in nearly
    every step, and Dopri5 at rtol = 1e-9 takes three times as long for a tenth of the accuracy (3e-9, measured on a
    layer of 2,048 entries at t1 = 5).

    Raises:
        ValueError: the solve diverged.
    """
    solution = problem.to(torch.float64).solve(solvers.RK4(num_steps=num_steps))
    if not bool(solution.y1.isfinite().all()):
        raise ValueError(
            f"the reference, RK4 in {num_steps} steps to t1={problem.t1}, became infinite: the field is unstable or "
            "too stiff for it. Give a shorter t1 or a lower rate, or pass a reference of your own"
        )
    return solution.y1


def _fixed_step(solver: str | solvers.Solver) -> solvers.Solver:
    chosen = solvers.get(solver)
    if not isinstance(chosen, solvers.FixedStepSolver):
        raise ValueError(
            f"{type(chosen).__name__} does not take a given number of steps, so it has no order to measure; choose a "
            "fixed-step solver such as 'rk4', or compare it by work_precision"
        )
    return chosen


def _check_steps(steps: Sequence[int]) -> tuple[int, ...]:
    for count in steps:
        solvers.checks.positive_int("steps", count)
    if len(set(steps)) < 2:
        raise ValueError(f"steps={tuple(steps)}: a slope needs at least two different numbers of steps")
    return tuple(sorted(set(steps)))


def _relative(found: Tensor, expected: Tensor) -> float:
    size = float(torch.linalg.vector_norm(expected))
    error = float(torch.linalg.vector_norm(found - expected)) / (size or 1.0)
    return error if math.isfinite(error) else math.nan


def _fit(dt: Sequence[float], errors: Sequence[float], used: Sequence[bool]) -> float:
    points = [(math.log(h), math.log(e)) for h, e, good in zip(dt, errors, used, strict=True) if good]
    if len(points) < 2:
        return math.nan
    x, y = np.array(points).T
    return float(np.polyfit(x, y, 1)[0])
