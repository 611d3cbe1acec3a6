"""Which solve each update of a training uses: always the same, or one drawn anew.

A network trained with one step count learns these steps and may fail under others. One whose horizon is drawn at every
update learns the flow, and its solver becomes a dial.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from torch import nn

import solvers
from solvers.adjoints import Adjoint
from vars_ode.layer import ReconstructionLayer
from vars_ode.models import MOST_STEPS, vars_layers

Distribution = Literal["uniform", "log-uniform"]
EQUILIBRIUM = solvers.DouglasRachford(max_steps=200, rtol=1e-3, atol=1e-4)


class Horizon(ABC):
    """A distribution of solves. Concrete ones are frozen dataclasses."""

    @abstractmethod
    def draw(self, seed: int, update: int) -> dict[str, Any]:
        """Settings of the VARS layers at one update: none, a horizon `t1`, or a solver and an adjoint.

        Depends on its arguments alone, so that it is the same in all processes and after a restart.
        """

    @abstractmethod
    def check(self, layer: ReconstructionLayer) -> None:
        """A ValueError where a layer cannot be trained like this."""


@dataclass(frozen=True)
class FixedHorizon(Horizon):
    """Every update solves as the layers are set."""

    def draw(self, seed: int, update: int) -> dict[str, Any]:
        return {}

    def check(self, layer: ReconstructionLayer) -> None:
        """Any layer can."""

    def __str__(self) -> str:
        return "fixed"


@dataclass(frozen=True)
class RandomHorizon(Horizon):
    """A horizon of `low` to `high` steps of the layer's own solver, drawn at every update; the step stays as it is.

    Args:
        low, high: whole numbers of steps, both included. 1 to 10 makes a dial of a few steps; "log-uniform" from 1 to
            64, with a ridge, one that reaches to the equilibrium.
        distribution: "uniform" over the whole numbers, or "log-uniform", which rounds exp(u) with u uniform.
        equilibrium: share of the updates that are made at the equilibrium instead.
        solver, adjoint: of those.
    """

    low: int = 1
    high: int = 10
    distribution: Distribution = "uniform"
    equilibrium: float = 0.0
    solver: str | solvers.Solver = EQUILIBRIUM
    adjoint: str | Adjoint = "implicit"

    def __post_init__(self) -> None:
        solvers.checks.positive_int("low", self.low)
        solvers.checks.positive_int("high", self.high)
        if self.high < self.low:
            raise ValueError(f"a horizon is drawn from low to high, got low={self.low} above high={self.high}")
        if self.high > MOST_STEPS:
            raise ValueError(
                f"a horizon is of at most {MOST_STEPS:,} steps, as a training takes each of them in every layer and "
                f"update, got high={self.high:,}; for longer solves take a share of updates at the equilibrium"
            )
        solvers.checks.one_of("distribution", self.distribution, get_args(Distribution))
        if not 0 <= self.equilibrium <= 1:
            raise ValueError(f"equilibrium is a share of the updates, from 0 to 1, got {self.equilibrium!r}")
        if not solvers.get(self.solver).reaches_equilibrium:
            raise ValueError(f"{self.solver!r} reaches no equilibrium; take 'douglas_rachford', 'nesterov' or the like")

    def draw(self, seed: int, update: int) -> dict[str, Any]:
        random = np.random.default_rng((seed, update))
        if random.random() < self.equilibrium:
            return {"solver": self.solver, "adjoint": self.adjoint, "until": None}
        if self.distribution == "uniform":
            steps = int(random.integers(self.low, self.high + 1))
        else:
            steps = round(math.exp(random.uniform(math.log(self.low), math.log(self.high))))
        return {"t1": float(steps)}

    def check(self, layer: ReconstructionLayer) -> None:
        if not isinstance(layer.solver, solvers.FixedStepSolver):
            raise ValueError(
                f"a random horizon needs a layer whose solver takes fixed steps, such as 'euler', got {layer.solver!r}"
            )
        if self.equilibrium:
            layer.resolve(solver=self.solver, adjoint=self.adjoint)

    def __str__(self) -> str:
        share = f" +{self.equilibrium:g}" if self.equilibrium else ""
        return f"{self.distribution} {self.low}-{self.high}{share}"


def parse_horizon(text: str) -> Horizon:
    """A horizon as commands have it: "fixed", "uniform 1-10", "log-uniform 1-64 +0.25" (a share at the equilibrium)."""
    if text.strip() == "fixed":
        return FixedHorizon()
    match = re.fullmatch(r"(?:(uniform|log-uniform)[ :])?(\d+)-(\d+)(?: ?\+(\d*\.?\d+))?", text.strip())
    if match is None:
        raise ValueError(
            f'cannot read the horizon {text!r}; write "fixed", "uniform 1-10" or "log-uniform 1-64 +0.25", where 0.25 '
            "is the share of updates at the equilibrium"
        )
    kind, low, high, share = match.groups()
    distribution: Distribution = "log-uniform" if kind == "log-uniform" else "uniform"
    return RandomHorizon(int(low), int(high), distribution, float(share or 0))


class SolveOfUpdate:
    """Sets the layers of a model to the solve of each update, and back.

    Args:
        model: the model; without VARS layers nothing is done.
        horizon: the distribution.
        seed: of the training.
    """

    def __init__(self, model: nn.Module, horizon: Horizon, seed: int) -> None:
        self._layers = list(vars_layers(model).values())
        self._horizon, self._seed = horizon, seed
        for layer in self._layers:
            horizon.check(layer)

    @contextmanager
    def at(self, update: int) -> Iterator[None]:
        """Inside, the layers are solved as drawn for this update."""
        drawn = self._horizon.draw(self._seed, update)
        before = [layer.settings() for layer in self._layers]
        try:
            for layer in self._layers if drawn else ():
                own = layer.solver  # with the step that it has over the layer's own horizon
                kept = own.with_step_of(layer.t1) if isinstance(own, solvers.FixedStepSolver) else own
                layer.configure(**{"solver": kept, **drawn})
            yield
        finally:
            for layer, settings in zip(self._layers, before, strict=True):
                layer.configure(**settings)
