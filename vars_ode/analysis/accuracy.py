"""How accurate a trained model is under other solves of its layers, and what they cost: the solver as a dial."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from solvers import SolverWarning
from vars_ode.analysis.measurement import Measurement, number
from vars_ode.layer import ReconstructionLayer
from vars_ode.measuring import evaluation_mode, fastest, processor_time
from vars_ode.models import Solve, layer_inputs, parse_solves, vars_layers
from vars_ode.plotting import COLOURS, MARKERS, literal, log_cost_axis, new_figure, place_labels, tidy
from vars_ode.robustness import Outcome, corrupt, outcomes

Condition = tuple[str, int]
CLEAN: Condition = ("clean", 0)
NOISE: Condition = ("small_gaussian_noise", 2)


@dataclass(frozen=True)
class AccuracyPoint:
    """A trained model under one solve.

    Attributes:
        solve: its label.
        accuracy: on clean images, a fraction; NaN where some image got no finite answer.
        corrupted: the mean over the corruptions; NaN without one.
        by_condition: (condition, severity) -> accuracy.
        evaluations: of the vector field, per layer and image, on clean images.
        milliseconds: of a forward pass, per image.
        residual: max|f| relative to max|y| at the end of the solve, the mean over layers and images: 0 at rest.
        stable: whether theory lets the step be this long, see `vars_ode.models.Solve.unstable_on`.
        notes: what the solver warned of, or why there is no accuracy.
    """

    solve: str
    accuracy: float
    corrupted: float
    by_condition: Mapping[Condition, float]
    evaluations: float
    milliseconds: float
    residual: float
    stable: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class AccuracyBySolver(Measurement):
    """Accuracy and cost of one trained model under several solves.

    Attributes:
        points: in the order of the solves.
        conditions: (name, severity) of everything that was done to the images.
        images: how many there were.
    """

    points: tuple[AccuracyPoint, ...]
    conditions: tuple[Condition, ...]
    images: int

    def findings(self) -> list[str]:
        usable = [p for p in self.points if p.stable and math.isfinite(p.accuracy)]
        if not usable:
            return ["No stable solve gave a finite answer for every image."]
        if len(usable) == 1:
            sentences = [f"{usable[0].solve}: {100 * usable[0].accuracy:.1f} % of {self.images} images."]
        else:
            low, high = (choose(usable, key=lambda p: p.accuracy) for choose in (min, max))
            cheap = min(usable, key=lambda p: p.evaluations)
            sentences = [
                f"Clean accuracy lies between {100 * low.accuracy:.1f} % ({low.solve}) and {100 * high.accuracy:.1f} % "
                f"({high.solve}) on {self.images} images.",
                f"The cheapest solve, {cheap.solve} with {cheap.evaluations:.3g} field evaluations per layer, is "
                f"{100 * (high.accuracy - cheap.accuracy):.1f} points below the best.",
            ]
        sentences += [
            f"{p.solve} takes longer steps than are stable, and is not drawn." for p in self.points if not p.stable
        ]
        sentences += [f"{p.solve}: {note}" for p in self.points for note in p.notes]
        return sentences

    def to_rows(self) -> list[dict[str, Any]]:
        return [
            {
                "solve": p.solve,
                **{_column(condition): number(p.by_condition[condition]) for condition in self.conditions},
                "corrupted": number(p.corrupted),
                "evaluations": number(p.evaluations),
                "milliseconds": number(p.milliseconds),
                "residual": number(p.residual),
                "stable": p.stable,
                "notes": " ".join(p.notes),
            }
            for p in self.points
        ]

    def plot(self) -> Figure:
        """Accuracy, clean and corrupted, over field evaluations and over time; unstable steps are left out."""
        figure = new_figure(10.0, 4.2)
        grid = figure.subplots(1, 2, sharey=True)
        drawn = [p for p in self.points if p.stable and math.isfinite(p.accuracy)]
        costs = {"evaluations": "field evaluations per layer and image", "milliseconds": "forward time per image (ms)"}
        for axes, (cost, label) in zip(grid, costs.items(), strict=True):
            tidy(axes, label, "accuracy (%)" if axes is grid[0] else "")
            self._panel(axes, drawn, cost)
        handles, labels = grid[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=10)
        figure.canvas.draw()  # the layout has to be final before labels can avoid each other
        figure.set_layout_engine("none")
        for axes, cost in zip(grid, costs, strict=True):
            spots = [(getattr(p, cost), 100 * p.accuracy) for p in drawn]
            place_labels(axes, spots, [p.solve for p in drawn], [])
        return figure

    def _panel(self, axes: Axes, drawn: Sequence[AccuracyPoint], cost: str) -> None:
        if not drawn:
            axes.text(0.5, 0.5, "no finite accuracy", transform=axes.transAxes, ha="center", va="center")
            return
        columns = {"clean": "accuracy"}
        if len(self.conditions) > 1:
            columns[self._corrupted_name()] = "corrupted"
        families = [family for family in dict.fromkeys(map(_family, drawn)) if family]
        for i, (name, column) in enumerate(columns.items()):
            style = {"color": COLOURS[i], "marker": MARKERS[i], "mfc": "white", "ms": 6.5, "mew": 1.5}
            xs, ys = [getattr(p, cost) for p in drawn], [100 * getattr(p, column) for p in drawn]
            axes.plot(xs, ys, ls="none", label=literal(name), **style)  # type: ignore[arg-type]
            for family in families if cost == "evaluations" else ():  # times are noisy, and would cross the line
                line = sorted((x, y) for x, y, p in zip(xs, ys, drawn, strict=True) if _family(p) == family)
                axes.plot(*zip(*line, strict=True), color=COLOURS[i], lw=1, alpha=0.6)
        log_cost_axis(axes, [getattr(p, cost) for p in drawn])
        axes.margins(y=0.2)

    def _corrupted_name(self) -> str:
        corrupted = [condition for condition in self.conditions if condition != CLEAN]
        if len(corrupted) == 1:
            return f"{corrupted[0][0].replace('_', ' ')}, severity {corrupted[0][1]}"
        return f"mean of {len(corrupted)} corruptions"


def accuracy_by_solver(
    model: nn.Module,
    data: Dataset[Any] | tuple[Tensor, Tensor],
    solves: str | Sequence[Solve] = "euler@1,2,3,5,10,20; rk4@5; douglas_rachford",
    *,
    corruptions: Sequence[Condition] = (NOISE,),
    batch_size: int = 125,
    device: torch.device | str | None = None,
    seed: int = 0,
    progress: Callable[[str, int], object] | None = None,
) -> AccuracyBySolver:
    """Measure a trained model under one solve after the other, without retraining; its weights are shared, not changed.

    Each batch is corrupted once and answered under every solve, so that all solves meet the same images.

    Args:
        model: maps images in [0, 1], (batch, channels, height, width), to logits; one that expects normalised images is
            wrapped: `nn.Sequential(normalise, model)`.
        data: a data set of (image, label), or a tuple of (images, labels).
        solves: short names as for `vars_ode.models.parse_solves`, or `Solve` objects.
        corruptions: (name, severity), out of `vars_ode.robustness.available()`.
        batch_size: images per batch. No effect on the accuracies, but on time and memory.
        device: where each batch is moved; None for that of the model's first parameter.
        seed: of the corruptions.
        progress: called as `progress(solve's label, images so far)`.

    Raises:
        ValueError: no VARS layer in the model, an unknown solve or corruption, or data that are not as above.
    """
    chosen = parse_solves(solves) if isinstance(solves, str) else tuple(solves)
    if not chosen:
        raise ValueError("accuracy_by_solver got no solves; give for example 'euler@1,2,5; rk4@5'")
    if not vars_layers(model):
        layer_inputs(model, torch.empty(0))  # raises, and says how to get such layers
    if isinstance(data, tuple):
        data = TensorDataset(*data)
    batches = DataLoader(data, batch_size=batch_size)
    device = torch.device(device) if device is not None else _device(model)
    trials = [_Trial(solve, model) for solve in chosen]
    conditions = (CLEAN, *corruptions)
    total = 0
    for images, labels in batches:
        images, labels = images.to(device), labels.to(device)
        places = torch.arange(total, total + len(images))
        if not total:
            for trial in trials:
                trial.measure_cost(images)
        for name, severity in conditions:
            seen = images if (name, severity) == CLEAN else corrupt(images, name, severity, seed, places)
            for trial in trials:
                trial.answer((name, severity), seen, labels, places)
                if progress is not None:
                    progress(trial.solve.label, total + len(images))
        total += len(images)
        if all(CLEAN in trial.failed for trial in trials):  # then it is hardly the solves: labels, for example
            raise ValueError(f"no solve gave an answer; {trials[0].solve.label}: {' '.join(trials[0].notes)}")
    if not total:
        raise ValueError("accuracy_by_solver got no images; give a data set that is not empty")
    return AccuracyBySolver(tuple(trial.point(conditions) for trial in trials), conditions, total)


class ForwardCost(NamedTuple):
    """Of a forward pass: field evaluations per layer and image, milliseconds per image, and `AccuracyPoint.residual`.

    Evaluations are 0 and the residual is NaN without VARS layers.
    """

    evaluations: float
    milliseconds: float
    residual: float


@torch.no_grad()
def forward_cost(model: nn.Module, images: Tensor) -> ForwardCost:
    """Measured on a batch of images. On the CPU the time is processor time: other processes may share the machine."""
    layers = layer_inputs(model, images).values() if vars_layers(model) else ()
    ends = [_end(layer, tokens) for layer, tokens in layers]
    with evaluation_mode(model):
        if images.device.type == "cpu":
            milliseconds = min(processor_time(lambda: model(images))[1] for _ in range(3))
        else:
            milliseconds = fastest(lambda: model(images), images.device)[1]
    evaluations, residual = (sum(values) / len(ends) for values in zip(*ends, strict=True)) if ends else (0.0, math.nan)
    return ForwardCost(evaluations, milliseconds / len(images), residual)


class _Trial:
    """One solve of the model: its answers so far, and its cost."""

    def __init__(self, solve: Solve, model: nn.Module) -> None:
        self.solve = solve
        self.found: dict[Condition, list[Outcome]] = {}
        self.notes: dict[str, None] = {}
        self.failed: set[Condition] = set()
        self.cost = ForwardCost(math.nan, math.nan, math.nan)
        self.model: nn.Module | None = None
        try:
            self.model = solve.apply(model)
        except ValueError as error:  # such as the single-step limit of a layer that has none
            self.notes[str(error)] = None
            self.failed.add(CLEAN)
        layers = vars_layers(self.model).values() if self.model is not None else ()
        self.stable = not any(solve.unstable_on(layer) for layer in layers)

    def measure_cost(self, images: Tensor) -> None:
        if self.model is None:
            return
        with self._recording(), suppress(RuntimeError, ValueError):  # it diverged, or is refused: `answer` says so
            self.cost = forward_cost(self.model, images)

    def answer(self, condition: Condition, images: Tensor, labels: Tensor, places: Tensor) -> None:
        if self.model is None or condition in self.failed or CLEAN in self.failed:
            return
        with self._recording():
            try:
                self.found.setdefault(condition, []).extend(
                    outcomes(self.model, [(images, labels)], ("clean",), indices=places)
                )
            except (RuntimeError, ValueError) as error:  # it diverged, or this solver cannot solve this field
                self.failed.add(condition)
                self.notes[str(error)] = None

    def point(self, conditions: Sequence[Condition]) -> AccuracyPoint:
        by_condition = {
            condition: math.nan
            if condition in self.failed or CLEAN in self.failed
            else Outcome.merge(self.found[condition]).accuracy
            for condition in conditions
        }
        corrupted = [accuracy for condition, accuracy in by_condition.items() if condition != CLEAN]
        return AccuracyPoint(
            solve=self.solve.label,
            accuracy=by_condition[CLEAN],
            corrupted=sum(corrupted) / len(corrupted) if corrupted else math.nan,
            by_condition=by_condition,
            evaluations=self.cost.evaluations,
            milliseconds=self.cost.milliseconds,
            residual=self.cost.residual,
            stable=self.stable,
            notes=tuple(self.notes),
        )

    @contextmanager
    def _recording(self) -> Iterator[None]:
        """Warnings of the solvers become notes, each once."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", SolverWarning)
            yield
        for warning in caught:
            if issubclass(warning.category, SolverWarning):
                self.notes[str(warning.message)] = None
            else:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _end(layer: ReconstructionLayer, tokens: Tensor) -> tuple[float, float]:
    """Field evaluations of a solve, and max|f| relative to max|y| at its end; means over images."""
    args, _ = layer.problem(tokens)
    solution = layer.solve(tokens)
    state = solution.y1.flatten(1)
    rate = layer.field(None, solution.y1, args).flatten(1)
    residual = rate.abs().amax(1) / state.abs().amax(1).clamp_min(torch.finfo(state.dtype).tiny)
    return float(solution.stats["num_field_evals"].double().mean()), float(residual.double().mean())


def _device(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return parameter.device if parameter is not None else torch.device("cpu")


def _family(point: AccuracyPoint) -> str:
    """Solves to several times by one solver are connected: "euler@5" is of the family "euler"."""
    name, at, _ = point.solve.partition("@")
    return name if at else ""


def _column(condition: Condition) -> str:
    return condition[0] if condition == CLEAN else f"{condition[0]}_{condition[1]}"
