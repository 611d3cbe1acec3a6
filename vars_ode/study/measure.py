"""The measurements of a study on a trained model: robustness, other solvers, traces of the solve."""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import solvers
from vars_ode import robustness
from vars_ode.fields import why_no_energy
from vars_ode.layer import ReconstructionLayer
from vars_ode.measuring import evaluation_mode, processor_time
from vars_ode.models import layer_inputs, single_step_limit, vars_layers, with_solver
from vars_ode.study.plan import EXACT, SINGLE_STEP, Plan, parse_solver

BATCH_SIZE = 125
PROBE_IMAGES = 50  # for evaluations and times, which differ little between images
TRACE_IMAGES = 3
TRACE_STEPS = 20
MAP_TIMES = (1, 2, 5, 20)
TRACE_CORRUPTION = ("small_gaussian_noise", 2)

Progress = Callable[[str], object]  # called with the name of what is measured, after each batch

EQUILIBRIUM = solvers.Nesterov(max_steps=150, rtol=1e-3, atol=1e-4)
"""About a hundred steps are enough if there is an equilibrium. With a learned factor there may be none; the solver's
warning is then recorded with the run."""


def conditions(plan: Plan) -> list[str]:
    """The names of everything that is done to the test images."""
    return ["clean", *plan.corruptions, "fgsm", "pgd"]


def attacks(plan: Plan) -> dict[str, Any]:
    """The attacks by name, as `robustness.evaluate` takes them."""
    eps = plan.eps
    return {
        "fgsm": partial(robustness.fgsm, eps=eps),
        "pgd": partial(robustness.pgd, eps=eps, step_size=eps / 4, num_steps=5),
    }


def measure_robustness(
    model: nn.Module, data: TensorDataset, plan: Plan, progress: Progress
) -> Iterator[dict[str, Any]]:
    """The accuracy in each condition, with the solver of the training."""
    label = plan.solver if vars_layers(model) else EXACT
    cost = _cost(model, data)
    rows = robustness.evaluate(
        model,
        data,
        conditions(plan),
        plan.severities,
        attacks=attacks(plan),
        batch_size=BATCH_SIZE,
        progress=lambda condition, severity, images: progress(condition),
    )
    for row in rows:
        yield {**row, "solver": label, **cost}


def measure_solvers(model: nn.Module, data: TensorDataset, plan: Plan, progress: Progress) -> Iterator[dict[str, Any]]:
    """Accuracy and cost of the same weights under the other solvers; None for a solver that diverges on some image."""
    for label in plan.sweep:
        if label == plan.solver or not vars_layers(model):
            continue
        other = with_label(model, label)
        cost: dict[str, Any] = {"evaluations": None, "milliseconds": None}
        with contextlib.suppress(RuntimeError, ValueError):  # it diverged: a later layer got NaN
            cost = _cost(other, data)
        for condition, severity in plan.sweep_conditions:
            progress(label)
            row: dict[str, Any] = {"condition": condition, "severity": severity, "accuracy": None}
            try:
                (measured,) = robustness.evaluate(other, data, [condition], [severity or 1], batch_size=BATCH_SIZE)
            except (RuntimeError, ValueError) as error:  # logits, or a later layer's input, that are not finite
                warnings.warn(f"{label} on {condition}: {error}", solvers.SolverWarning, stacklevel=2)
            else:
                row.update(measured)
            yield {**row, "solver": label, **cost}


def with_label(model: nn.Module, label: str) -> nn.Module:
    """A copy that shares the weights, with the solver that a label of the plan stands for.

    Args:
        label: as for `parse_solver`, or "single-step" for the limit in which VARS is self-attention.
    """
    if label == SINGLE_STEP:
        return single_step_limit(model)
    return with_solver(model, EQUILIBRIUM if label == "nesterov" else parse_solver(label))


@torch.no_grad()
def _cost(model: nn.Module, data: TensorDataset) -> dict[str, Any]:
    """Field evaluations per layer and image, and milliseconds per image of a forward pass."""
    images = data.tensors[0][:PROBE_IMAGES]
    evaluations = [
        layer.solve(tokens).stats["num_field_evals"].double().mean().item()
        for layer, tokens in (layer_inputs(model, images).values() if vars_layers(model) else ())
    ]
    with evaluation_mode(model):
        _, milliseconds = processor_time(lambda: model(images))  # several runs share the machine
    return {
        "evaluations": float(np.mean(evaluations)) if evaluations else 0.0,
        "milliseconds": milliseconds / len(images),
    }


@torch.no_grad()
def measure_traces(model: nn.Module, data: TensorDataset, progress: Progress) -> dict[str, np.ndarray]:
    """Energy and residual over a longer horizon than in training, and attention maps at several horizons."""
    images = data.tensors[0][:TRACE_IMAGES]
    corrupted = robustness.corrupt(images, *TRACE_CORRUPTION)
    energies, residuals = [], []
    with evaluation_mode(model):
        for layer, tokens in layer_inputs(model, images).values():
            progress("traces")
            energy, residual = _along_solve(at_horizon(layer, TRACE_STEPS), tokens)
            energies.append(energy)
            residuals.append(residual)
        maps = [_maps(model, pictures) for pictures in (images, corrupted)]
    return {
        "times": np.arange(TRACE_STEPS + 1.0),
        "energy": np.stack(energies),
        "residual": np.stack(residuals),
        "images": images[:, 0].numpy(),
        "corrupted": corrupted[:, 0].numpy(),
        "corruption_name": np.array(TRACE_CORRUPTION[0]),
        "maps_clean": maps[0],
        "maps_corrupted": maps[1],
        "map_times": np.array(MAP_TIMES, dtype=float),
    }


def at_horizon(layer: ReconstructionLayer, t1: float) -> ReconstructionLayer:
    """A copy of the layer with another horizon, in Euler steps of dt = 1; parameters are shared."""
    return with_solver(layer, solvers.Euler(dt=1.0), t1=float(t1), until=False)


def _along_solve(layer: ReconstructionLayer, tokens: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(energy, residual) at each step, means over images and heads; the energy is NaN for fields that descend none."""
    args, _ = layer.problem(tokens)
    states = layer.solve(tokens, save_at="steps").ys
    rates = torch.stack([layer.field(None, state, args) for state in states])
    residual = rates.abs().flatten(3).amax(-1).mean((1, 2))
    if why_no_energy(layer.field, args):
        return np.full(len(states), np.nan), residual.numpy()
    return layer.energy(tokens).mean((1, 2)).numpy(), residual.numpy()


def _maps(model: nn.Module, images: Tensor) -> np.ndarray:
    """The attention that each grid token of the last VARS layer receives, (images, times, height, width)."""
    layer, tokens = list(layer_inputs(model, images).values())[-1]
    maps = []
    for t1 in MAP_TIMES:
        attention = at_horizon(layer, t1).attention_map(tokens)
        received = attention.abs().sum(-2).mean(1)  # over queries and heads: (images, tokens)
        side = math.isqrt(received.shape[-1])
        maps.append(received.view(-1, side, side))
    return torch.stack(maps, 1).numpy()
