"""Attention maps over solver time, and the share of attention on the foreground."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import solvers
from vars_ode.analysis.foreground import boundary_foreground
from vars_ode.analysis.measurement import Measurement, number
from vars_ode.analysis.problems import check_layer, with_its_step
from vars_ode.grids import Grid, check_tokens
from vars_ode.layer import ReconstructionLayer
from vars_ode.measuring import evaluation_mode
from vars_ode.models import with_solver
from vars_ode.plotting import COLOURS, SMALL, new_figure, tidy
from vars_ode.representation import tensor_repr

MAX_PICTURES = 4
_INSTANT = 1e-9  # a horizon that is 0 to rounding: the map of the initial state


@dataclass(frozen=True, eq=False)
class AttentionMaps(Measurement):
    """Maps at several solver times.

    Attributes:
        times: (times,).
        maps: the weight of each value token (last axis) in each output token, (times, batch, heads, tokens, tokens).
        foreground: (batch, grid tokens) boolean.
        concentration: the share of attention on the foreground, (times, batch, heads): the sum of |A_ij| over all i and
            over foreground tokens j, divided by the sum over all i and all grid tokens j.
        chance: the share of grid tokens that are foreground, (batch,): the concentration of uniform attention.
        grid: (height, width) of the last tokens; the tokens before them are prefix tokens and are not measured.
    """

    times: tuple[float, ...]
    maps: Tensor
    foreground: Tensor
    concentration: Tensor
    chance: Tensor
    grid: Grid

    __repr__ = tensor_repr

    @property
    def received(self) -> Tensor:
        """The attention that each grid token receives: |A| summed over queries and heads, normalised to sum 1.

        (times, batch, height, width).
        """
        mass = self.maps[..., -math.prod(self.grid) :].abs().sum((2, 3))
        return (mass / _positive(mass.sum(-1, keepdim=True))).unflatten(-1, self.grid)

    def findings(self) -> list[str]:
        lift = (self.concentration.mean(2) / _positive(self.chance)).mean(1)
        return [
            f"The share of attention on the foreground is {float(lift[0]):.2f} times its share of the area at "
            f"t = {self.times[0]:g}, and {float(lift[-1]):.2f} times at t = {self.times[-1]:g}."
        ]

    def to_rows(self) -> list[dict[str, Any]]:
        return [
            {
                "time": self.times[t],
                "sample": sample,
                "head": head,
                "concentration": number(self.concentration[t, sample, head]),
                "chance": float(self.chance[sample]),
            }
            for t, sample, head in np.ndindex(*self.concentration.shape)
        ]

    def plot(self, images: Tensor | None = None) -> Figure:
        """Maps of up to four inputs over time, with a colour scale per row, and the concentration below.

        Args:
            images: the input of the model, (batch, channels, height, width) in [0, 1], drawn on the left.
        """
        count, received = min(MAX_PICTURES, self.maps.shape[1]), self.received.numpy()
        columns = len(self.times) + (2 if images is not None else 1)
        figure = new_figure(max(6.5, 1.25 * columns), 1.3 * count + 3.1)
        parts: Any = figure.subfigures(2, 1, height_ratios=[1.3 * count + 0.3, 2.8])
        upper, lower = parts
        panels = upper.subplots(count, columns, squeeze=False)
        for i, row in enumerate(panels):
            free = list(row)
            if images is not None:
                _picture(free.pop(0), _as_picture(images[i]), "input" if i == 0 else "", cmap="gray", vmin=0, vmax=1)
            mask = self.foreground[i].view(self.grid).double().numpy()
            _picture(free.pop(0), mask, "foreground" if i == 0 else "", cmap="gray", vmin=0, vmax=1)
            low, top = float(received[:, i].min()), float(received[:, i].max())
            for axes, t, picture in zip(free, self.times, received[:, i], strict=True):
                _picture(
                    axes,
                    picture,
                    f"t = {t:.3g}" if i == 0 else "",
                    cmap="viridis",
                    vmin=low,
                    vmax=max(top, low + 1e-12),
                )
        self._curves(lower.subplots())
        lower.legend(loc="outside lower center", ncols=3, fontsize=SMALL, frameon=False)
        return figure

    def _curves(self, axes: Axes) -> None:
        lift = (self.concentration.mean(2) / _positive(self.chance)).numpy()
        axes.plot(self.times, lift, color=COLOURS[5], lw=1, alpha=0.8)
        axes.plot(self.times, lift.mean(1), color=COLOURS[0], marker="o", ms=5, lw=2, label="mean over inputs")
        axes.plot([], [], color=COLOURS[5], lw=1, label="an input, mean over heads")
        axes.axhline(1.0, color="#000000", lw=1, ls="--", label="uniform attention")
        tidy(axes, "solver time t", "times chance", "Share of attention on the foreground, over its share of the area")


def attention_maps(
    layer: ReconstructionLayer,
    x: Tensor,
    times: Sequence[float] = (0.0, 1.0, 2.0, 5.0, 20.0),
    *,
    foreground: Tensor | None = None,
    grid: Grid | None = None,
    solver: str | solvers.Solver | None = None,
) -> AttentionMaps:
    """`layer.attention_map` as the horizon grows.

    Args:
        layer: the layer.
        x: the tokens that reach it, (batch, tokens, dim).
        times: horizons; 0 gives the map of the initial state.
        foreground: which grid tokens show the object, (batch, grid tokens) boolean; `boundary_foreground` of the
            layer's input by default.
        grid: (height, width), whose tokens come last; by default the model's where the layer is in a vision transformer
            of timm's, or else the largest square.
        solver: the layer's own by default, with the step length that it has over the layer's own horizon; Euler with
            dt = 1 if that is a relaxation method, which has no time.
    """
    check_layer(layer)
    times = _check_times(times)
    size, prefix = (grid, x.shape[1] - math.prod(grid)) if grid is not None else layer.token_grid(x.shape[1])
    check_tokens(size, x.shape[1] - prefix)
    if foreground is None:
        foreground = boundary_foreground(x[:, prefix:], size)
    foreground = _check_foreground(foreground, (x.shape[0], math.prod(size)))
    stepping = _stepping(layer, solver)
    with evaluation_mode(layer):
        maps = torch.stack([_at_horizon(layer, time, stepping).attention_map(x).detach() for time in times]).cpu()
    foreground = foreground.cpu()
    mass = maps[..., prefix:].abs().double()
    share = (mass * foreground[:, None, None]).sum((-2, -1)) / _positive(mass.sum((-2, -1)))
    return AttentionMaps(times, maps, foreground, share, foreground.double().mean(1), (size[0], size[1]))


def _at_horizon(layer: ReconstructionLayer, time: float, solver: solvers.Solver) -> ReconstructionLayer:
    """A copy of the layer with another horizon; parameters are shared."""
    instant = time < _INSTANT
    solver = solvers.Euler(num_steps=1) if instant else solver
    return with_solver(layer, solver, t1=max(time, _INSTANT), until=False)


def _stepping(layer: ReconstructionLayer, choice: str | solvers.Solver | None) -> solvers.Solver:
    solver = solvers.get(layer.solver if choice is None else choice)
    if solver.reaches_equilibrium:
        if choice is not None:
            raise ValueError(
                f"{solver} returns the equilibrium whatever the horizon; take a solver such as 'euler' or 'rk4'"
            )
        return solvers.Euler(dt=1.0)
    return with_its_step(solver, layer.t1)


def _check_times(times: Sequence[float]) -> tuple[float, ...]:
    for time in times:
        solvers.checks.non_negative_number("times", time)
    if not times:
        raise ValueError("times must hold at least one horizon, such as (0, 1, 5)")
    return tuple(float(time) for time in times)


def _check_foreground(mask: Tensor, expected: tuple[int, int]) -> Tensor:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) != expected:
        got = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"foreground must be a boolean tensor (batch, grid tokens) = {expected}, got {got}")
    return mask


def _positive(values: Tensor) -> Tensor:
    return torch.where(values > 0, values, 1.0)


def _as_picture(image: Tensor) -> np.ndarray:
    image = image.detach().float().cpu().clamp(0, 1)
    return image[0].numpy() if image.shape[0] == 1 else image[:3].permute(1, 2, 0).numpy()


def _picture(axes: Axes, picture: np.ndarray, title: str, **options: Any) -> None:
    axes.imshow(picture, interpolation="nearest", **options)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=SMALL)
