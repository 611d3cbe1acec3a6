"""Measures along a solve: energy, optimality, sparsity, distance to the equilibrium, contraction."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import solvers
from vars_ode.analysis.equilibrium import Equilibrium, find_equilibrium
from vars_ode.analysis.measurement import Measurement, number
from vars_ode.analysis.problems import InitialValueProblem, per_problem, problem_of, relative_errors, with_its_step
from vars_ode.analysis.spectrum import spectral_radius
from vars_ode.fields import energy, kkt_residual
from vars_ode.plotting import COLOURS, new_figure, plain_log_axis, tidy
from vars_ode.representation import tensor_repr


@dataclass(frozen=True, eq=False)
class Trace(Measurement):
    """Measures along a solve, per problem: (saved, batch, heads), or (saved, batch) for problems without heads.

    Attributes:
        times: (saved,); iterations for relaxation methods.
        energy: E(a) without the constant 1/2|V|^2; None for fields that descend no energy.
        kkt: `kkt_residual`, in units of the drive; None for fields that descend no energy.
        residual: max |f(y)|, zero at an equilibrium.
        active_fraction: share of the code's entries that are not zero.
        distance: |a - a*|_2 / |a*|_2 to the equilibrium a*; None if none was found.
        spectral_radius: of T'(y), T(y) = y + f(y); NaN at states where it was not computed.
        equilibrium_energy: E(a*), (batch, heads); None without an energy or an equilibrium.
        notes: the reason for each None, and whether the solve diverged.
    """

    times: Tensor
    energy: Tensor | None
    kkt: Tensor | None
    residual: Tensor
    active_fraction: Tensor
    distance: Tensor | None
    spectral_radius: Tensor
    equilibrium_energy: Tensor | None
    notes: tuple[str, ...]

    __repr__ = tensor_repr

    def findings(self) -> list[str]:
        sentences = [f"{note[0].upper()}{note[1:]}." for note in self.notes]
        if self.energy is not None:
            slack = 1e-9 * self.energy.abs().amax(0)
            falls = (self.energy.diff(dim=0) <= slack).all(0)
            sentences.append(f"The energy never rises in {int(falls.sum())} of {falls.numel()} problems.")
        if self.distance is not None:
            start, end = (float(self.distance[i].median()) for i in (0, -1))
            sentences.append(
                f"The distance to the equilibrium goes from {start:.2g} to {end:.2g} by t = {float(self.times[-1]):g}."
            )
        return sentences

    def to_rows(self) -> list[dict[str, Any]]:
        columns = ("energy", "kkt", "residual", "active_fraction", "distance", "spectral_radius")
        known = {name: getattr(self, name) for name in columns}
        rows = []
        for index in np.ndindex(*self.residual.shape):
            point = {"time": float(self.times[index[0]]), "sample": index[1], "head": index[2] if index[2:] else 0}
            values = {name: None if v is None else number(v[index]) for name, v in known.items()}
            rows.append({**point, **values})
        return rows

    def plot(self) -> Figure:
        """Six panels: the median over samples and heads, with the range as a band."""
        figure = new_figure(10.5, 6.0)
        grid = figure.subplots(2, 3).ravel()
        equilibrium_energy = self.equilibrium_energy
        excess = self.energy if self.energy is None or equilibrium_energy is None else self.energy - equilibrium_energy
        label = "energy E(a)" if equilibrium_energy is None else "energy above equilibrium, E(a) - E(a*)"
        why = {note.split(":")[0]: note.split(": ", 1)[-1] for note in self.notes}
        self._panel(grid[0], excess, label, equilibrium_energy is not None, why.get("no energy"))
        self._panel(grid[1], self.kkt, "KKT residual", True, why.get("no energy"))
        self._panel(grid[2], self.distance, "distance to equilibrium", True, why.get("no equilibrium"))
        self._panel(grid[3], self.residual, "residual max |f|", True)
        self._panel(grid[4], self.active_fraction, "active fraction of the code", False)
        self._panel(grid[5], self.spectral_radius, "spectral radius of T'(a)", False, "not computed")
        grid[5].axhline(1.0, color="#000000", lw=1, ls="--")
        return figure

    def _panel(self, axes: Axes, values: Tensor | None, label: str, log: bool, why: str | None = None) -> None:
        tidy(axes, "solver time t", "", label)
        if values is None or not bool(values.isfinite().any()):
            axes.text(0.5, 0.5, _wrapped(why or "not finite"), transform=axes.transAxes, ha="center", va="center")
            axes.set(xticks=[], yticks=[])
            return
        lines = values.flatten(1).numpy()
        lines = np.where(np.isfinite(lines) & ((lines > 0) | (not log)), lines, np.nan)
        drawable = np.isfinite(lines).any(1)
        times, lines = self.times.numpy()[drawable], lines[drawable]
        axes.fill_between(times, np.nanmin(lines, 1), np.nanmax(lines, 1), color=COLOURS[5], alpha=0.35, lw=0)
        marks: dict[str, Any] = {"marker": "o", "markevery": max(1, len(times) // 12), "ms": 4}
        axes.plot(times, np.nanmedian(lines, 1), color=COLOURS[0], lw=1.8, **marks)
        if log:
            axes.set_yscale("log")
            plain_log_axis(axes.yaxis, float(np.nanmin(lines)), float(np.nanmax(lines)))


def trace(
    subject: nn.Module | InitialValueProblem,
    x: Tensor | None = None,
    *,
    solver: str | solvers.Solver | None = None,
    t1: float | None = None,
    times: Sequence[float] | None = None,
    power_iterations: int = 60,
    spectral_points: int = 21,
    equilibrium: Equilibrium | None = None,
) -> Trace:
    """Measure a solve at many times.

    Args:
        subject: a VARS layer, or an `InitialValueProblem`.
        x: the layer's input, (batch, tokens, dim).
        solver: the layer's own by default, with the step length that it has over the layer's own horizon.
        t1: the horizon, the layer's own by default.
        times: when to measure; at every step by default, or at 21 times for solvers with a step size per sample.
        power_iterations: vector-Jacobian products per spectral radius; 0 computes none.
        spectral_points: at how many of the states, evenly spaced, to compute it.
        equilibrium: computed if None.
    """
    problem = problem_of(subject, x)
    horizon = problem.t1 if t1 is None else t1
    chosen = solvers.get(solver) if solver is not None else with_its_step(problem.solver, problem.t1)
    solution = problem.solve(chosen, horizon, times if times is not None else "steps")
    if solution.ts.ndim > 1:  # each sample has its own times
        solution = problem.solve(chosen, horizon, torch.linspace(0, horizon, 21).tolist())
    exact = problem.to(torch.float64)
    states = solution.ys.double()
    codes = [exact.code(state) for state in states]
    equilibrium = equilibrium or find_equilibrium(problem)
    reason = problem.why_no_energy()
    no_energy = f"no energy: {reason}" if reason else None
    no_equilibrium, not_finite = _why_no_equilibrium(equilibrium), _why_not_finite(solution)
    return Trace(
        times=solution.ts.double().cpu(),
        energy=None if no_energy else _along(energy, codes, exact),
        kkt=None if no_energy else _along(kkt_residual, codes, exact, worst=True),
        residual=torch.stack([per_problem(exact.rate(state).abs()).amax(-1) for state in states]).cpu(),
        active_fraction=torch.stack([per_problem((code != 0).double()).mean(-1) for code in codes]).cpu(),
        distance=None if no_equilibrium else relative_errors(codes, equilibrium.code),
        spectral_radius=_spectra(exact, states, power_iterations, spectral_points).cpu(),
        equilibrium_energy=None if no_energy or no_equilibrium else _along(energy, [equilibrium.code], exact)[0],
        notes=tuple(note for note in (no_energy, no_equilibrium, not_finite) if note),
    )


def _along(
    measure: Callable[[Tensor, Any], Tensor], codes: Sequence[Tensor], problem: InitialValueProblem, worst: bool = False
) -> Tensor:
    """A measure of each code, per problem. In VARS-S a channel is a problem: the sum or maximum over its filters."""
    with torch.no_grad():
        values = torch.stack([measure(code, problem.args) for code in codes])
    if problem.y0.ndim > 4:
        values = values.flatten(3).amax(-1) if worst else values.flatten(3).sum(-1)
    return values.cpu()


def _spectra(problem: InitialValueProblem, states: Tensor, iterations: int, points: int) -> Tensor:
    shape = (len(states), *per_problem(states[0]).shape[:-1])
    found = torch.full(shape, float("nan"), dtype=torch.float64)
    if iterations:
        for i in sorted(set(torch.linspace(0, len(states) - 1, points).round().int().tolist())):
            if bool(states[i].isfinite().all()):
                found[i] = spectral_radius(problem.field, states[i], problem.args, iterations).cpu()
    return found


def _why_no_equilibrium(found: Equilibrium) -> str | None:
    if bool(found.converged.all()):
        return None
    count, worst = int((~found.converged).sum()), float(found.residual.nan_to_num(float("inf")).max())
    return f"no equilibrium: {count} of {len(found.converged)} samples did not converge, max |f| stays at {worst:.2g}"


def _why_not_finite(solution: solvers.Solution) -> str | None:
    count = int((solution.status == solvers.Status.NONFINITE).sum())
    return (
        f"not finite: {count} of {len(solution.status)} samples, {solvers.Status.NONFINITE.advice}" if count else None
    )


def _wrapped(text: str, width: int = 32) -> str:
    return "\n".join(textwrap.wrap(text, width))
