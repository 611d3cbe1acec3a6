"""Short names for ways to solve the layers of a trained model, such as "euler@5" or "nesterov"."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import nn

import solvers
from solvers.adjoints import Implicit, Truncated
from vars_ode.layer import ReconstructionLayer
from vars_ode.models.layers import single_step_limit, vars_layers, with_solver

SINGLE_STEP = "single-step"
AT_REST: dict[str, Any] = {"max_steps": 200, "rtol": 1e-3, "atol": 1e-4}
"""How far equilibrium solvers go here: the class that a network answers does not change beyond it, and a field without
an equilibrium, as a learned factor may have, costs no more than this."""

MOST_STEPS = 10_000
"""A short name stands for no more steps: at a millisecond each, which is a fast layer, they take ten seconds per layer
and batch, and a flow that is not at rest after them is better left to a solver that looks for the equilibrium."""

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Solve:
    """One way to solve the layers of a model.

    Args:
        label: its short name.
        settings: of the layers, as `set_solver` takes them. None for the limit in which VARS is self-attention.
    """

    label: str
    settings: Mapping[str, Any] | None = field(default_factory=dict)

    def apply(self, model: M) -> M | nn.Module:
        """A copy of the model that shares its weights and is solved like this.

        A solve to a finite time of a model that is differentiated at its equilibrium gets the gradient of its steps.

        Raises:
            ValueError: a layer cannot be, or there is none.
        """
        if self.settings is None:
            return single_step_limit(model)
        at_rest = any(isinstance(layer.adjoint, Implicit | Truncated) for layer in vars_layers(model).values())
        adjoint = {"adjoint": "direct"} if at_rest and "t1" in self.settings else {}
        return with_solver(model, **self.settings, **adjoint)

    def unstable_on(self, layer: ReconstructionLayer) -> bool:
        """Whether theory calls the step too long for a layer that has this solver set already.

        The flow contracts at rates of at most 1 where the rate eta is a bound ("power", "gershgorin"), so that a
        method is stable for steps up to its limit on y' = -y: 2 for Euler's, 2.785 for RK4. Nothing is known for a
        rate that is a number. A learned factor's flow is not bound to contract, but its limit is taken as the same.
        """
        solver, t1 = layer.solver, layer.t1
        if not isinstance(solver, solvers.FixedStepSolver) or not isinstance(layer.rate, str):
            return False
        step = solver.with_step_of(t1).step_length(layer.field)
        return step > solver.stability_limit * (1 + 1e-9)


def parse_solves(text: str) -> tuple[Solve, ...]:
    """Solves by their short names.

    - "euler@5": to the time 5 in the field's own steps of dt = 1, so five of them; "euler@1,2,5" are three solves.
    - "euler@5/2": two steps to the time 5, of dt = 2.5.
    - "tsit5@5": an adaptive solver to the time 5; "rk4" without a time: to the layer's own.
    - "nesterov", "douglas_rachford", ...: to the equilibrium, in at most 200 steps to rtol = 1e-3.
    - "single-step": the limit in which VARS is self-attention.

    Args:
        text: names with ";" between.

    Raises:
        ValueError: a name that cannot be read, or no solver's.
    """
    found = [solve for entry in text.split(";") if entry.strip() for solve in _parse(entry.strip())]
    if not found:
        raise ValueError(f'no solve in {text!r}; write for example "euler@1,2,5,10; rk4@5; nesterov"')
    return tuple({solve.label: solve for solve in found}.values())


def training_settings(text: str) -> dict[str, Any]:
    """The settings of layers that are trained with one solve, such as "euler@5"; `until` is left as it is.

    Raises:
        ValueError: several solves, or the limit in which nothing is solved.
    """
    solves = parse_solves(text)
    if len(solves) != 1 or solves[0].settings is None:
        raise ValueError(f'models are trained with one solve, such as "euler@5", got solver={text!r}')
    return {name: value for name, value in solves[0].settings.items() if name != "until"}


def _parse(entry: str) -> list[Solve]:
    if entry == SINGLE_STEP:
        return [Solve(SINGLE_STEP, None)]
    name, at, times = (part.strip() for part in entry.partition("@"))
    solver = solvers.get(name)
    if not at:
        settings = {"solver": solvers.get(name, **AT_REST)} if solver.reaches_equilibrium else {"solver": solver}
        return [Solve(name, {**settings, "until": False})]
    if solver.reaches_equilibrium:
        raise ValueError(f"{name} returns the equilibrium, the limit of long times; write {name!r} without @{times}")
    return [_timed(name, time.strip()) for time in times.split(",")]


def _check_steps(label: str, steps: float) -> None:
    if steps > MOST_STEPS:
        raise ValueError(
            f"{label} asks for {steps:,.0f} steps, each of which is a pass over the layer for every batch, so that no "
            f"answer would come: at most {MOST_STEPS:,} are accepted. For the limit of long times take an equilibrium "
            "solver such as 'nesterov'"
        )


def _timed(name: str, time: str) -> Solve:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(?:/(\d+))?", time)
    if match is None or float(match[1]) == 0 or match[2] == "0":
        raise ValueError(
            f"cannot read the time {time!r} of {name}; write {name}@5, or {name}@5/2 for two steps to the time 5"
        )
    solver = solvers.get(name)
    if isinstance(solver, solvers.FixedStepSolver):
        _check_steps(f"{name}@{time}", float(match[2] or match[1]))
    if match[2] is not None:
        if not isinstance(solver, solvers.FixedStepSolver):
            raise ValueError(f"{name} chooses its own steps, so {name}@{time} cannot be; write {name}@{match[1]}")
        solver = solvers.get(name, num_steps=int(match[2]))
    return Solve(f"{name}@{time}", {"solver": solver, "t1": float(match[1]), "until": False})
