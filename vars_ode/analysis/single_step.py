"""The distance of VARS attention from self-attention, per layer and head."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor, nn

import solvers
from vars_ode.analysis.measurement import Measurement, number
from vars_ode.analysis.problems import relative_error
from vars_ode.attention import VARSAttention
from vars_ode.measuring import evaluation_mode
from vars_ode.models import layer_inputs
from vars_ode.plotting import SMALL, literal, new_figure
from vars_ode.representation import tensor_repr


@dataclass(frozen=True, eq=False)
class SingleStepGap(Measurement):
    """Distances between the output of each head, before the projection, and that of attention in one step.

    Attributes:
        layers: their names, (layers,).
        to_limit: |o - o'|_2 / |o'|_2 with o' of `layer.single_step_limit()`, averaged over images, (layers, heads);
            NaN where a layer has fewer heads.
        to_softmax: the same with o' = softmax(Q K^T / sqrt(d)) V of the layer's own queries, keys and values.
        limit_cosine, softmax_cosine: cosine of the angle between the two outputs, which does not depend on their scale.
    """

    layers: tuple[str, ...]
    to_limit: Tensor
    to_softmax: Tensor
    limit_cosine: Tensor
    softmax_cosine: Tensor

    __repr__ = tensor_repr

    def findings(self) -> list[str]:
        mean = float(self.to_softmax.nanmean())
        return [f"The mean relative distance of the heads' outputs from softmax attention is {mean:.2g}."]

    def to_rows(self) -> list[dict[str, Any]]:
        columns = ("to_limit", "to_softmax", "limit_cosine", "softmax_cosine")
        return [
            {"layer": name, "head": head, **{column: number(getattr(self, column)[i, head]) for column in columns}}
            for i, name in enumerate(self.layers)
            for head in range(self.to_limit.shape[1])
            if not bool(self.to_limit[i, head].isnan())
        ]

    def plot(self) -> Figure:
        """Two heat maps, layers by heads."""
        heads = self.to_limit.shape[1]
        figure = new_figure(3.4 + 2 * max(1.6, 0.62 * heads), 1.5 + 0.36 * len(self.layers))
        grid = figure.subplots(1, 2, sharey=True)
        both = torch.stack([self.to_limit, self.to_softmax])
        top = max(float(both.nan_to_num(0.0).max()), 1e-12)  # one scale, so that colours compare between the panels
        _table(grid[0], self.to_limit, "to the single-step limit", top)
        image = _table(grid[1], self.to_softmax, "to softmax attention", top)
        figure.colorbar(image, ax=list(grid)).ax.tick_params(labelsize=SMALL)
        grid[0].set_yticks(range(len(self.layers)), [literal(name) for name in self.layers], fontsize=SMALL)
        figure.suptitle("Relative distance of each head's output", fontsize=10.5)
        return figure


def single_step_gap(model: nn.Module, x: Tensor) -> SingleStepGap:
    """Compare every VARS layer, on the tokens that reach it, with its single-step limit and with softmax attention.

    In the limit (zero start, lam = 0, eta = 1, one Euler step) the code is the drive and the output Phi Phi^T V, kernel
    self-attention. With dictionary="softmax" the two comparisons are the same. Convolutional layers have no such limit
    and are skipped.

    Args:
        model: a layer, or a model with layers.
        x: its input: tokens (batch, tokens, dim) for a layer, images for a model.
    """
    inputs = {n: (found, t) for n, (found, t) in layer_inputs(model, x).items() if isinstance(found, VARSAttention)}
    if not inputs:
        raise ValueError(
            f"none of the layers of this {type(model).__name__} is a VARSAttention; convolutional layers have no "
            "single-step limit"
        )
    heads = max(layer.num_heads for layer, _ in inputs.values())
    table = torch.full((4, len(inputs), heads), float("nan"), dtype=torch.float64)
    for i, (layer, tokens) in enumerate(inputs.values()):
        table[:, i, : layer.num_heads] = _compare(layer, tokens)
    return SingleStepGap(tuple(inputs), *table)


@torch.no_grad()
def _compare(layer: VARSAttention, tokens: Tensor) -> Tensor:
    """The four measures per head, averaged over images, (4, heads)."""
    with evaluation_mode(layer), warnings.catch_warnings():
        warnings.simplefilter("ignore", solvers.SolverWarning)
        own, limit = head_outputs(layer, tokens), head_outputs(layer.single_step_limit().eval(), tokens)
        q, k, v = layer.queries_keys_values(tokens)
        softmax = F.scaled_dot_product_attention(q, k, v)
    distances = [relative_error(own, other) for other in (limit, softmax)]
    cosines = [
        F.cosine_similarity(own.flatten(2), other.flatten(2).to(own.dtype), dim=-1) for other in (limit, softmax)
    ]
    return torch.stack([measure.double().mean(0).cpu() for measure in (*distances, *cosines)])


def head_outputs(layer: VARSAttention, tokens: Tensor) -> Tensor:
    """Phi a per head, before heads are joined and projected, (batch, heads, tokens, head_dim)."""
    args, read_out = layer.problem(tokens)
    return read_out(layer.field.code(layer.solve(tokens).y1, args))


def _table(axes: Axes, values: Tensor, title: str, top: float) -> AxesImage:
    masked: Any = np.ma.masked_invalid(values.numpy())
    image = axes.imshow(masked, cmap="cividis", vmin=0, vmax=top, aspect="auto")
    for (row, column), value in np.ndenumerate(values.numpy()):
        if np.isfinite(value):
            ink = "white" if value < 0.55 * top else "black"
            axes.text(column, row, f"{value:.2g}", ha="center", va="center", color=ink, fontsize=SMALL)
    axes.set_xticks(range(values.shape[1]), [str(head + 1) for head in range(values.shape[1])], fontsize=SMALL)
    axes.set_xlabel("head", fontsize=10)
    axes.set_title(title, fontsize=10, loc="left")
    return image
