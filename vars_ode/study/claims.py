"""What a study measures of its trained models beside accuracy: where their maps look, how sparse their codes are, and
how far they are from self-attention."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import solvers
from vars_ode.analysis.saliency import average_precision, object_masks, two_objects
from vars_ode.analysis.single_step import single_step_gap
from vars_ode.baselines import PerformerAttention
from vars_ode.conversion import convert_attention
from vars_ode.measuring import evaluation_mode
from vars_ode.models import layer_inputs, vars_layers, with_solver
from vars_ode.robustness import corrupt
from vars_ode.study.measure import Progress, at_horizon

TIMES = (1, 2, 3, 5, 10)
PICTURES = 64  # of each kind
GAP_PICTURES = 32
CORRUPTED = ("small_gaussian_noise", 2)


def object_sets(images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Kind -> (pictures, masks): test images with one article, the same with noise, and two articles each."""
    chosen = images[object_masks(images).flatten(1).any(1)][:PICTURES]
    masks = object_masks(chosen)
    return {"article": (chosen, masks), "noisy": (corrupt(chosen, *CORRUPTED), masks), "two": two_objects(PICTURES)}


def measure_objects(model: nn.Module, images: Tensor, progress: Progress) -> dict[str, np.ndarray]:
    """How well the maps of the last attention layer find the object, at several solver times.

    Softmax attention has one map and no time. Performer's is not measured: it has none without forming the matrix.

    Returns:
        for each kind of pictures: "kind" average precision (times, pictures), "kind/chance" that of a uniform map
        (pictures,); and "times".
    """
    attending = _as_vars(model)
    if attending is None:
        return {}
    times = TIMES if attending is model else (1,)
    found: dict[str, np.ndarray] = {"times": np.array(times, dtype=float)}
    for kind, (pictures, masks) in object_sets(images).items():
        progress(f"maps of {kind}")
        layer, tokens = list(layer_inputs(attending, pictures).values())[-1]
        with evaluation_mode(layer):
            scores = [average_precision(_received(at_horizon(layer, time), tokens), masks) for time in times]
        found[kind] = torch.stack(scores).float().numpy()
        found[f"{kind}/chance"] = masks.double().mean((1, 2)).float().numpy()
    return found


def _as_vars(model: nn.Module) -> nn.Module | None:
    """The model itself; for softmax attention one of the same maps in a single step; None for other attention."""
    if vars_layers(model):
        return model
    if any(isinstance(part, PerformerAttention) for part in model.modules()):
        return None
    converted = copy.deepcopy(model)
    convert_attention(converted)
    return converted


def _received(layer: Any, tokens: Tensor) -> Tensor:
    """The attention that each grid token receives, from all queries in all heads, (pictures, rows, columns)."""
    maps = layer.attention_map(tokens).abs().sum(-2).mean(1)
    side = math.isqrt(maps.shape[-1])
    return maps.view(-1, side, side)


@torch.no_grad()
def measure_sparsity(model: nn.Module, images: Tensor) -> float | None:
    """The share of code entries that are not zero at the end of the solve, the mean over layers."""
    if not vars_layers(model):
        return None
    shares = []
    for layer, tokens in layer_inputs(model, images[:PICTURES]).values():
        with evaluation_mode(layer):
            args, _ = layer.problem(tokens)
            code = layer.field.code(layer.solve(tokens).y1, args)
        shares.append(float((code != 0).double().mean()))
    return sum(shares) / len(shares)


def measure_gap(model: nn.Module, images: Tensor) -> list[dict[str, Any]]:
    """The distance from self-attention along the way to the trained model: more steps, then the sparsity.

    Each row is a horizon and a sparsity with the means over layers, heads and images of `single_step_gap`. Empty for
    models without a single-step limit.
    """
    rows = []
    if not vars_layers(model) or not all(hasattr(layer, "single_step_limit") for layer in vars_layers(model).values()):
        return []
    trained = next(iter(vars_layers(model).values()))
    for sparsity in dict.fromkeys((0.0, trained.sparsity)):
        for time in TIMES:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", solvers.SolverWarning)
                solved = with_solver(
                    model, solvers.Euler(dt=1.0), t1=float(time), sparsity=sparsity, until=False, adjoint="direct"
                )
                gap = single_step_gap(solved, images[:GAP_PICTURES])
            values = {
                name: float(getattr(gap, name).nanmean())
                for name in ("to_limit", "to_softmax", "limit_cosine", "softmax_cosine")
            }
            rows.append({"time": time, "sparsity": sparsity, **values})
    return rows
