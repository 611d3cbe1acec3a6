"""The measurements of a study on a trained model: robustness, other solvers, traces of the solve."""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import solvers
from vars_ode import robustness
from vars_ode.analysis.accuracy import CLEAN, AccuracyPoint, ForwardCost, accuracy_by_solver, forward_cost
from vars_ode.analysis.measurement import number
from vars_ode.evaluation import EvaluationSettings, run_evaluation
from vars_ode.fields import why_no_energy
from vars_ode.layer import ReconstructionLayer
from vars_ode.measuring import evaluation_mode
from vars_ode.models import layer_inputs, parse_solves, vars_layers, with_solver
from vars_ode.study.plan import Plan

BATCH_SIZE = 125
PROBE_IMAGES = 50  # for evaluations and times, which differ little between images
TRACE_IMAGES = 3
TRACE_STEPS = 20
MAP_TIMES = (1, 2, 5, 20)
TRACE_CORRUPTION = ("small_gaussian_noise", 2)
EVALUATION, ATTACKED = "evaluation", "attacks"  # the folders in a run's

Progress = Callable[[str], object]  # called with the name of what is measured, after each batch


def evaluation_settings(plan: Plan) -> dict[str, EvaluationSettings]:
    """What `vars-ode evaluate` would be told to measure what the plan asks for, by the folder that it goes into."""
    shared = EvaluationSettings(
        plan.data,
        ("clean", *plan.corruptions, *plan.shifts, *plan.attacks),
        severities=plan.severities,
        images=plan.test_images,
        eps=plan.eps,
        steps=plan.attack_steps,
        step_size=plan.attack_step * plan.eps or None,
        restarts=plan.restarts,
        queries=plan.queries,
        draws=0,
        transfer=plan.transfer or None,
        transfer_adjoints=(),  # the implicit gradient costs tens of times the others
    )
    if plan.attack_images is None or not plan.attacks:
        return {EVALUATION: shared}
    unattacked = replace(shared, conditions=("clean", *plan.corruptions, *plan.shifts))
    return {EVALUATION: unattacked, ATTACKED: replace(shared, conditions=plan.attacks, images=plan.attack_images)}


def measure_robustness(
    folder: Path, model: nn.Module, plan: Plan, solver: str, progress: Progress
) -> Iterator[dict[str, Any]]:
    """The accuracy in each condition, with the solver of the training.

    Args:
        folder: of the saved model, where the evaluation is kept, as `vars-ode evaluate` leaves it.
        model: the model, for the cost of its forward pass.
        plan: the plan of the study.
        solver: the label of that solver.
        progress: called with each condition that is finished.
    """
    cost = _columns(forward_cost(model, plan.images("test").tensors[0][:PROBE_IMAGES]))
    for place, settings in evaluation_settings(plan).items():
        found = run_evaluation(
            folder,
            settings,
            folder / place,
            batch_size=BATCH_SIZE,
            device="cpu",
            report=lambda key, accuracy: progress(key.condition),
            show_progress=False,
        )
        for key, outcome in found.outcomes.items():
            row = {"condition": key.condition, "severity": key.severity, "accuracy": outcome.accuracy}
            yield {**row, "solver": solver, **cost}


def measure_solvers(
    model: nn.Module, data: TensorDataset, plan: Plan, solver: str, progress: Progress
) -> Iterator[dict[str, Any]]:
    """Accuracy and cost of the same weights under the other solves; None for one that gives no finite answer."""
    solves = [solve for solve in parse_solves(plan.sweep) if solve.label != solver] if plan.sweep else []
    if not solves or not vars_layers(model):
        return
    corruptions = [condition for condition in plan.sweep_conditions if condition != CLEAN]
    found = accuracy_by_solver(
        model,
        data,
        solves,
        corruptions=corruptions,
        batch_size=BATCH_SIZE,
        progress=lambda label, images: progress(label),
    )
    for point in found.points:
        for note in point.notes:
            warnings.warn(f"{point.solve}: {note}", solvers.SolverWarning, stacklevel=2)
        for (condition, severity), accuracy in point.by_condition.items():
            row = {"condition": condition, "severity": severity, "accuracy": number(accuracy)}
            yield {**row, "solver": point.solve, **_columns(point), "stable": point.stable}


def _columns(cost: ForwardCost | AccuracyPoint) -> dict[str, Any]:
    return {name: number(getattr(cost, name)) for name in ("evaluations", "milliseconds", "residual")}


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
    return with_solver(layer, solvers.Euler(dt=1.0), t1=float(t1), until=False, adjoint="direct")


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
