"""What is measured on a trained twin: robustness, solvers without retraining, traces of the solve."""

import contextlib
import copy
import math
import time
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
from vars_ode.attention import VARSAttention
from vars_ode.demo.settings import Settings
from vars_ode.demo.twins import EXACT, vars_layers, with_solver
from vars_ode.fields import ReconstructionArgs, energy

BATCH_SIZE = 125
PROBE_IMAGES = 50  # for evaluations and times, which hardly differ between images
TRACE_IMAGES = 3
TRACE_STEPS = 20
MAP_TIMES = (1, 2, 5, 20)
TRACE_CORRUPTION = ("small_gaussian_noise", 2)

Tick = Callable[[str], object]  # called with what is being measured, after each piece of work
Row = dict[str, Any]


def conditions(settings: Settings) -> list[str]:
    return ["clean", *settings.corruptions, "fgsm", "pgd"]


def attacks(settings: Settings) -> dict[str, Any]:
    eps = settings.eps
    return {
        "fgsm": partial(robustness.fgsm, eps=eps),
        "pgd": partial(robustness.pgd, eps=eps, step_size=eps / 4, num_steps=5),
    }


def measure_robustness(model: nn.Module, data: TensorDataset, settings: Settings, tick: Tick) -> Iterator[Row]:
    """Accuracy under every condition, with the solver of the training."""
    label = settings.solver if vars_layers(model) else EXACT
    cost = _cost(model, data)
    rows = robustness.evaluate(
        model,
        data,
        conditions(settings),
        settings.severities,
        attacks=attacks(settings),
        batch_size=BATCH_SIZE,
        progress=lambda condition, severity, images: tick(condition),
    )
    for row in rows:
        yield {**row, "solver": label, **cost}


def measure_solvers(model: nn.Module, data: TensorDataset, settings: Settings, tick: Tick) -> Iterator[Row]:
    """Accuracy and cost of the same weights under the other solvers; None where one diverges on any of the images."""
    for label in settings.sweep:
        if label == settings.solver or not vars_layers(model):
            continue
        twin = with_solver(model, label)
        cost: Row = {"evaluations": None, "milliseconds": None}
        with contextlib.suppress(RuntimeError, ValueError):  # it diverged: a later layer met NaN
            cost = _cost(twin, data)
        for condition, severity in settings.sweep_conditions:
            tick(label)
            row: Row = {"condition": condition, "severity": severity, "accuracy": None}
            try:
                (measured,) = robustness.evaluate(twin, data, [condition], [severity or 1], batch_size=BATCH_SIZE)
            except (RuntimeError, ValueError) as error:  # logits, or a later layer's input, that are not finite
                warnings.warn(f"{label} on {condition}: {error}", solvers.SolverWarning, stacklevel=2)
            else:
                row.update(measured)
            yield {**row, "solver": label, **cost}


@torch.no_grad()
def _cost(model: nn.Module, data: TensorDataset) -> Row:
    """Field evaluations per layer and image, and milliseconds per image of a forward pass."""
    images = data.tensors[0][:PROBE_IMAGES]
    model.eval()
    evaluations = [
        layer.solve(tokens).stats["num_field_evals"].double().mean().item()
        for layer, tokens in _layer_inputs(model, images)
    ]
    started = time.process_time()
    model(images)
    milliseconds = 1e3 * (time.process_time() - started) / len(images)
    return {"evaluations": float(np.mean(evaluations)) if evaluations else 0.0, "milliseconds": milliseconds}


def _layer_inputs(model: nn.Module, images: Tensor) -> list[tuple[VARSAttention, Tensor]]:
    """Each VARS layer with the tokens that reach it."""
    inputs: list[tuple[VARSAttention, Tensor]] = []
    handles = [
        layer.register_forward_pre_hook(lambda layer, args: inputs.append((layer, args[0])))
        for layer in vars_layers(model).values()
    ]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return inputs


@torch.no_grad()
def measure_traces(model: nn.Module, data: TensorDataset, tick: Tick) -> dict[str, np.ndarray]:
    """Energy and residual along a solve longer than the trained one, and attention maps at several horizons."""
    model.eval()
    images = data.tensors[0][:TRACE_IMAGES]
    corrupted = robustness.corrupt(images, *TRACE_CORRUPTION)
    energies, residuals = [], []
    for layer, tokens in _layer_inputs(model, images):
        tick("traces")
        along = _along_solve(_at_horizon(layer, TRACE_STEPS), tokens)
        energies.append(along[0])
        residuals.append(along[1])
    return {
        "times": np.arange(TRACE_STEPS + 1.0),
        "energy": np.stack(energies),
        "residual": np.stack(residuals),
        "images": images[:, 0].numpy(),
        "corrupted": corrupted[:, 0].numpy(),
        "corruption_name": np.array(TRACE_CORRUPTION[0]),
        "maps_clean": _maps(model, images),
        "maps_corrupted": _maps(model, corrupted),
        "map_times": np.array(MAP_TIMES, dtype=float),
    }


def _at_horizon(layer: VARSAttention, t1: float) -> VARSAttention:
    longer = copy.copy(layer)
    longer.t1 = float(t1)
    longer.solver = solvers.Euler(dt=1.0)
    return longer


def _along_solve(layer: VARSAttention, tokens: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(energy, residual) at each step, means over images and heads; the energy is NaN where there is none."""
    args, _ = layer.problem(tokens)
    states = layer.solve(tokens, save_at="steps").ys
    rates = torch.stack([layer.field(None, state, args) for state in states])
    residual = rates.abs().amax((-2, -1)).mean((1, 2))
    if not isinstance(args, ReconstructionArgs):
        return np.full(len(states), np.nan), residual.numpy()
    along = torch.stack([energy(layer.field.code(state, args), args).mean() for state in states])
    return along.numpy(), residual.numpy()


def _maps(model: nn.Module, images: Tensor) -> np.ndarray:
    """How strongly each grid token of the last VARS layer is attended to, (images, times, height, width)."""
    layer, tokens = _layer_inputs(model, images)[-1]
    maps = []
    for t1 in MAP_TIMES:
        attention = _at_horizon(layer, t1).attention_map(tokens)
        received = attention.abs().sum(-2).mean(1)  # over queries and heads: (images, tokens)
        side = math.isqrt(received.shape[-1])
        maps.append(received.view(-1, side, side))
    return torch.stack(maps, 1).numpy()
