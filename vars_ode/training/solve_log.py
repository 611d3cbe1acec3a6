"""How the layers' solves went during training: steps, failures, residual, share of active codes."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

import solvers
from solvers import Status
from vars_ode.layer import ReconstructionLayer
from vars_ode.measuring import evaluation_mode
from vars_ode.models import layer_inputs, vars_layers

_FAILURES = (Status.MAX_STEPS_REACHED, Status.STEP_SIZE_TOO_SMALL, Status.NONFINITE)
SOLVE_FAILED = "|".join(f"{status.name}: " for status in _FAILURES)  # how the warnings of what is counted here begin


class SolveRow(TypedDict):
    """One layer in one epoch: its training's solves, and those of some fixed images with the weights at its end."""

    epoch: int
    layer: str
    solves: int  # problems solved in training
    steps: float  # their mean
    evaluations: float  # of the field, their mean
    failures: int  # that did not reach what was asked for
    residual: float  # largest |dy/dt| at the end of a solve, its mean over the fixed images
    active: float  # share of codes that are not zero there


def failures(rows: Iterable[SolveRow]) -> list[str]:
    """A sentence for each layer and epoch with solves that failed."""
    return [
        f"epoch {row['epoch']}: {row['failures']} of {row['solves']} solves of {row['layer']} did not reach what was "
        "asked for"
        for row in rows
        if row["failures"]
    ]


class SolveLog:
    """Counts the solves of a model's VARS layers; without such layers there is nothing to count.

    Args:
        model: the model.
        enabled: False where the model is compiled, which leaves nothing to look at.
    """

    def __init__(self, model: nn.Module, enabled: bool = True) -> None:
        self._layers: Mapping[str, ReconstructionLayer] = vars_layers(model) if enabled else {}
        self._counts: dict[str, Tensor] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Solves inside are counted."""
        for name, layer in self._layers.items():
            layer.watch = self._counter(name)
        try:
            yield
        finally:
            for layer in self._layers.values():
                layer.watch = None

    def _counter(self, name: str) -> Callable[[solvers.Solution], None]:
        def count(solution: solvers.Solution) -> None:
            stats, status = solution.stats, solution.status
            failed = [((status == code) & ~solution.success).sum() for code in _FAILURES]
            totals = [stats["num_steps"].sum(), stats["num_field_evals"].sum(), *failed]
            new = torch.stack([torch.full_like(totals[0], len(status)), *totals])
            self._counts[name] = self._counts[name] + new if name in self._counts else new

        return count

    def state(self, add_up: Callable[[Tensor], Tensor]) -> dict[str, list[int]]:
        """The counts since the last epoch's end, over all processes by `add_up`."""
        return {name: add_up(self._counts[name]).tolist() for name in sorted(self._counts)}

    def load(self, state: Mapping[str, list[int]], device: torch.device) -> None:
        """Go on from a result of `state`."""
        self._counts = {name: torch.tensor(counts, device=device) for name, counts in state.items()}

    def close_epoch(
        self, epoch: int, model: nn.Module, probe: Tensor, counts: Mapping[str, list[int]]
    ) -> list[SolveRow]:
        """The rows of an epoch; the counts start again.

        Args:
            epoch: its number.
            model: the model that the layers are in.
            probe: some images, the same in each epoch.
            counts: a result of `state`.
        """
        self._counts = {}
        if not self._layers:
            return []
        rows: list[SolveRow] = []
        with evaluation_mode(model), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", solvers.SolverWarning)  # what they say is in the rows
            inputs = layer_inputs(model, probe)
            for name, (layer, tokens) in inputs.items():
                solves, steps, evaluations, *failed = counts.get(name, [0] * 6)
                row: Any = {"epoch": epoch, "layer": name, "solves": solves, "failures": sum(failed)}
                row["steps"], row["evaluations"] = steps / max(solves, 1), evaluations / max(solves, 1)
                tokens = tokens.to(next(layer.parameters()).dtype)  # under mixed precision they are narrower
                args, _ = layer.problem(tokens)
                solution = layer.solve(tokens)
                row["residual"] = float(solution.stats["residual"].mean())
                row["active"] = float((layer.field.code(solution.y1, args) != 0).float().mean())
                rows.append(row)
        return rows
