"""From softmax attention to sparse, recurrent attention in the course of a fine-tuning."""

from typing import Any

from torch import nn

import solvers
from vars_ode.layer import ReconstructionLayer
from vars_ode.models.layers import require_layers


class Annealing:
    """Raises sparsity, and then the horizon, of some layers; made by `anneal`, and stepped like a learning rate.

    Attributes:
        layers: by name.
        update: how many updates are done, at most `steps`.
    """

    def __init__(
        self, layers: dict[str, ReconstructionLayer], steps: int, sparsity: float, t1: float, stages: int
    ) -> None:
        solvers.checks.positive_int("steps", steps)
        solvers.checks.positive_int("stages", stages)
        for layer in layers.values():
            layer.resolve(sparsity=sparsity, t1=t1)
        self.layers, self.steps, self.stages, self.update = layers, steps, stages, 0
        self._goal = (sparsity, t1)
        self._start = {name: (layer.sparsity, layer.t1) for name, layer in layers.items()}
        for layer in layers.values():
            if isinstance(layer.solver, solvers.FixedStepSolver):
                layer.solver = layer.solver.with_step_of(layer.t1)  # more steps over a longer horizon, not longer ones

    @property
    def progress(self) -> float:
        """From 0 to 1, in `stages` equal parts."""
        return self.update * self.stages // self.steps / self.stages

    def step(self) -> None:
        """Count an update and set the layers for the next one; after the last they stay at the goal."""
        self.update = min(self.update + 1, self.steps)
        self._set()

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes to go on after a restart: plain numbers."""
        return {"update": self.update, "start": {name: list(start) for name, start in self._start.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was taken, and set the layers so.

        Raises:
            ValueError: it is of other layers.
        """
        if state["start"].keys() != self.layers.keys():
            raise ValueError(
                f"this state is of the layers {', '.join(state['start'])}, and the model has {', '.join(self.layers)}"
            )
        self._start = {name: (float(start[0]), float(start[1])) for name, start in state["start"].items()}
        self.update = min(int(state["update"]), self.steps)
        self._set()

    def _set(self) -> None:
        shares = (min(1.0, 2 * self.progress), max(0.0, 2 * self.progress - 1))
        for name, layer in self.layers.items():
            sparsity, t1 = (
                goal if share == 1 else start + share * (goal - start)
                for start, goal, share in zip(self._start[name], self._goal, shares, strict=True)
            )
            layer.configure(sparsity=sparsity, t1=t1)

    def __repr__(self) -> str:
        return f"Annealing(update={self.update} of {self.steps}, sparsity to {self._goal[0]}, t1 to {self._goal[1]})"


def anneal(
    model: nn.Module, steps: int, *, sparsity: float = 0.05, t1: float = 5.0, stages: int = 20, match: str | None = None
) -> Annealing:
    """Raise sparsity and horizon of the VARS layers of a model over a fine-tuning, from what they are to a goal.

    Sparsity rises over the first half of the updates and the horizon over the second: without sparsity the code of the
    softmax dictionary grows with the horizon. A horizon between two steps ends with a shorter one, so nothing jumps::

        annealing = vars_ode.anneal(model, steps=epochs * len(loader))
        for images, labels in batches:
            ...
            optimizer.step()
            annealing.step()

    Args:
        model: with VARS layers, such as one of `convert_attention`.
        steps: updates until the goal is reached.
        sparsity, t1: the goal. lam is in units of the values, which are smaller than the codes of random features.
        stages: how many times the settings change: each is a new graph for torch.compile, whose limit is eight by
            default (`torch._dynamo.config.recompile_limit`).
        match: a glob on module names; all layers by default.

    Raises:
        ValueError: there is no such layer, or the goal is none for its solver. No layer is changed then.
    """
    return Annealing(require_layers(model, match), steps, sparsity, t1, stages)
