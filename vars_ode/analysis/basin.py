"""Basins of attraction: do different initial states reach the same attractor?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import solvers
from solvers import Status
from vars_ode.analysis.measurement import Measurement, number
from vars_ode.analysis.problems import InitialValueProblem, per_problem, problem_of, relative_error, relative_errors
from vars_ode.plotting import COLOURS, MARKERS, SMALL, new_figure, tidy
from vars_ode.representation import tensor_repr


@dataclass(frozen=True, eq=False)
class Basin(Measurement):
    """The final states of solves from different initial states.

    Attributes:
        starts: their names, the layer's own first.
        converged: whether the solve from a start reached an equilibrium, (starts, batch) boolean.
        status: of that solve, (starts, batch), as `solvers.Status`.
        start_distance, end_distance: |a - a_0|_2 / |a_0|_2 of the initial and of the final code a, where a_0 is the
            final code from the first start, (starts, batch, heads).
        output_distance: the same of the final outputs; None without a read-out.
        attractors: the number of different final codes, (batch, heads); 0 where a solve did not converge.
        tolerance: relative distance up to which two final codes count as the same.
    """

    starts: tuple[str, ...]
    converged: Tensor
    status: Tensor
    start_distance: Tensor
    end_distance: Tensor
    output_distance: Tensor | None
    attractors: Tensor
    tolerance: float

    __repr__ = tensor_repr

    @property
    def is_one_attractor(self) -> bool:
        """Whether all starts of each problem converge to the same equilibrium."""
        return bool(self.converged.all()) and bool((self.attractors == 1).all())

    @property
    def verdict(self) -> str:
        """The finding in a sentence."""
        count = len(self.starts)
        if not bool(self.converged.all()):
            worst = Status(int(self.status.max())).name
            failed = int((~self.converged).sum())
            return f"Not converged: {failed} of {self.converged.numel()} solves reached no equilibrium ({worst})."
        if self.is_one_attractor:
            return (
                f"One attractor: all {count} starts end at the same code, within {self.tolerance:g}, in every problem."
            )
        several = int((self.attractors > 1).sum())
        most = int(self.attractors.max())
        return (
            f"Several attractors: in {several} of {self.attractors.numel()} problems, up to {most} for {count} starts."
        )

    def findings(self) -> list[str]:
        return [self.verdict]

    def to_rows(self) -> list[dict[str, Any]]:
        shape = self.end_distance.shape
        rows = []
        for index in np.ndindex(*shape):
            start, sample = index[0], index[1]
            output = None if self.output_distance is None else number(self.output_distance[index])
            rows.append(
                {
                    "start": self.starts[start],
                    "sample": sample,
                    "head": index[2] if index[2:] else 0,
                    "converged": bool(self.converged[start, sample]),
                    "status": Status(int(self.status[start, sample])).name,
                    "start_distance": number(self.start_distance[index]),
                    "end_distance": number(self.end_distance[index]),
                    "output_distance": output,
                    "attractors": int(self.attractors[index[1:]]),
                }
            )
        return rows

    def plot(self) -> Figure:
        """Distance of initial and final codes to the final code from the first start; a marker per sample and head."""
        figure = new_figure(7.0, 1.7 + 0.34 * len(self.starts))
        axes = figure.subplots()
        floor = 1e-16
        for values, colour, marker, label in (
            (self.start_distance, COLOURS[1], MARKERS[1], "before"),
            (self.end_distance, COLOURS[0], MARKERS[3], "after"),
        ):
            lines = values.flatten(1).clamp_min(floor).numpy()
            heights = np.broadcast_to(np.arange(len(lines))[:, None], lines.shape)
            drawable = np.isfinite(lines) & (lines > floor)  # the first start's final code is at distance 0 from itself
            style: dict[str, Any] = {
                "color": colour,
                "marker": marker,
                "ls": "none",
                "ms": 5,
                "mfc": "none",
                "alpha": 0.7,
            }
            axes.plot(lines[drawable], heights[drawable], label=label, **style)
        axes.axvline(self.tolerance, color="#000000", lw=1, ls="--", label=f"one attractor up to {self.tolerance:g}")
        axes.set_xscale("log")
        tidy(axes, "relative distance to the final code from the first start", "")
        names = [
            name if bool(ok.all()) else f"{name} ({int(ok.sum())} of {len(ok)} converged)"
            for name, ok in zip(self.starts, self.converged, strict=True)
        ]
        axes.set_yticks(range(len(names)), names, fontsize=SMALL)
        axes.invert_yaxis()
        handles, labels = axes.get_legend_handles_labels()
        figure.suptitle(self.verdict, fontsize=10.5, wrap=True)
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=SMALL)
        return figure


def basin(
    subject: nn.Module | InitialValueProblem,
    x: Tensor | None = None,
    num_starts: int = 8,
    *,
    solver: str | solvers.Solver | None = None,
    scale: float = 3.0,
    tolerance: float = 1e-3,
    max_steps: int = 10_000,
    seed: int = 0,
) -> Basin:
    """Solve to the equilibrium from several initial states, in float64.

    The first start is the layer's own, the second zero, and the others Gaussian: independent entries, whose standard
    deviation is `scale` times the root mean square of the drive (of y0 where there is no drive).

    Args:
        subject: a VARS layer, or an `InitialValueProblem`.
        x: the layer's input, (batch, tokens, dim).
        num_starts: at least 2.
        solver: a relaxation method, or any method if the problem has `until`. By default "nesterov" for a convex
            energy, and "fixed_point" for other fields and where momentum diverges, as it may for rates above
            1 / |G|; both to |f| <= 1e-10 + 1e-8 |y|.
        max_steps: limit of iterations of the default solvers.
        tolerance: relative distance of codes up to which two ends are one attractor.
        seed: of the Gaussian starts.
    """
    solvers.checks.positive_int("num_starts", num_starts)
    if num_starts < 2:
        raise ValueError("num_starts must be at least 2, as one start has nothing to be compared with; got 1")
    solvers.checks.positive_number("tolerance", tolerance)
    solvers.checks.positive_number("scale", scale)
    problem = problem_of(subject, x).to(torch.float64)
    chosen = _solvers(problem, solver, max_steps)
    starts = _starts(problem, num_starts, scale, seed)
    states = list(starts.values())
    for method in chosen:
        ends = [replace(problem, y0=y0).solve(method, float("inf")) for y0 in states]
        converged = torch.stack([end.status == int(Status.STEADY_STATE) for end in ends])
        if all(_residual(problem, end.y1) <= _residual(problem, y0) for end, y0 in zip(ends, states, strict=True)):
            break  # none has diverged
    codes = [problem.code(end.y1) for end in ends]
    outputs = [output for code in codes if (output := problem.output(code)) is not None]
    return Basin(
        starts=tuple(starts),
        converged=converged.cpu(),
        status=torch.stack([end.status for end in ends]).cpu(),
        start_distance=relative_errors([problem.code(y0) for y0 in states], codes[0]),
        end_distance=relative_errors(codes, codes[0]),
        output_distance=relative_errors(outputs, outputs[0]) if outputs else None,
        attractors=_count(codes, converged, tolerance).cpu(),
        tolerance=tolerance,
    )


def _residual(problem: InitialValueProblem, state: Tensor) -> float:
    """max |f| over all samples; infinite if it is NaN."""
    return float(problem.rate(state).abs().nan_to_num(nan=float("inf")).max())


def _solvers(
    problem: InitialValueProblem, choice: str | solvers.Solver | None, max_steps: int
) -> Sequence[solvers.Solver]:
    """The methods to try in turn, until no start diverges."""
    if choice is None:
        methods = (solvers.Nesterov, solvers.FixedPoint) if problem.is_convex else (solvers.FixedPoint,)
        return [method(max_steps=max_steps, rtol=1e-8, atol=1e-10) for method in methods]
    chosen = solvers.get(choice)
    if not chosen.reaches_equilibrium and problem.until is None:
        raise ValueError(
            f"{chosen} does not stop at the equilibrium; take a relaxation method such as 'fixed_point', or a problem "
            "with until=solvers.SteadyState(...)"
        )
    return [chosen]


def _starts(problem: InitialValueProblem, count: int, scale: float, seed: int) -> dict[str, Tensor]:
    y0, drive = problem.y0, getattr(problem.args, "drive", problem.y0)
    size = scale * float(drive.square().mean().sqrt()) or scale
    generator = torch.Generator().manual_seed(seed)
    starts = {"own": y0, "zero": torch.zeros_like(y0)}
    for i in range(count - 2):
        noise = torch.randn(y0.shape, generator=generator, dtype=torch.float64)
        starts[f"random {i + 1}"] = size * noise.to(y0.device)
    return starts


def _count(codes: Sequence[Tensor], converged: Tensor, tolerance: float) -> Tensor:
    """The number of codes that are farther than `tolerance` from all those before them."""
    attractors = torch.ones(per_problem(codes[0]).shape[:-1], dtype=torch.long, device=codes[0].device)
    for i in range(1, len(codes)):
        nearest = torch.stack([relative_error(codes[i], codes[j]) for j in range(i)]).amin(0)
        attractors += nearest > tolerance
    all_converged = converged.all(0).view(-1, *[1] * (attractors.ndim - 1))
    return torch.where(all_converged, attractors, 0)
