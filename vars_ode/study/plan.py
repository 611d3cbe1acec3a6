"""The plan of a study: everything that its results depend on, except attention and seed."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import nn

import solvers
from vars_ode.building import SMALL_MODEL, ModelSpec
from vars_ode.models import named_attention
from vars_ode.training import Horizon, Recipe, parse_horizon

SINGLE_STEP = "single-step"
EXACT = "exact"  # the label of attentions that have no solver


@dataclass(frozen=True)
class Plan:
    """The settings of all runs in a results folder. Runs with further attentions and seeds can be added later.

    Args:
        recipe: how each model is trained.
        model: a model of timm's, built with each attention.
        model_options: its keyword arguments.
        solver: with which the VARS models are trained, such as "euler-5".
        sparsity: lam.
        t1: horizon of the solve.
        num_features: random features per head; VARS-SD has as many static templates.
        train_images, test_images: the first so many images of the embedded data set.
        severities: of the corruptions.
        corruptions: their names.
        sweep: labels of the solvers that the trained models are measured with, see `parse_solver`; also "single-step".
        sweep_conditions: the (condition, severity) in which they are.
        eps: of FGSM and PGD, on the [0, 1] scale; PGD takes 5 steps of eps/4 from a random start.
    """

    recipe: Recipe = field(default_factory=lambda: Recipe(epochs=5, batch_size=50))
    model: str = SMALL_MODEL
    model_options: dict[str, Any] = field(default_factory=dict)
    solver: str = "euler-5"
    sparsity: float = 0.3
    t1: float = 5.0
    num_features: int = 16
    train_images: int = 5000
    test_images: int = 500
    severities: tuple[int, ...] = (1, 2, 3)
    corruptions: tuple[str, ...] = (
        "small_gaussian_noise",
        "small_impulse_noise",
        "small_gaussian_blur",
        "small_contrast",
        "small_brightness",
        "small_pixelate",
        "small_occlusion",
        "small_elastic_transform",
    )
    sweep: tuple[str, ...] = ("single-step", "euler-2", "euler-5", "euler-20", "rk4-5", "nesterov")
    sweep_conditions: tuple[tuple[str, int], ...] = (("clean", 0), ("small_gaussian_noise", 2))
    eps: float = 8 / 255

    def __post_init__(self) -> None:
        solvers.checks.non_negative_number("sparsity", self.sparsity)
        for name in ("train_images", "test_images"):
            solvers.checks.positive_int(name, getattr(self, name))

    def spec(self, attention: str) -> ModelSpec:
        """The model with an attention, and those options of the plan that the attention takes."""
        chosen = named_attention(attention)
        options: dict[str, Any] = {}
        if chosen.is_vars:
            options = {"sparsity": self.sparsity, "t1": self.t1, "solver": parse_solver(self.solver)}
        if "num_features" in chosen.option_names and chosen.options.get("dictionary") != "softmax":
            options["num_features"] = self.num_features
        return ModelSpec(self.model, chosen.name, options, model_options=self.model_options)

    def build(self, attention: str, seed: int) -> nn.Module:
        """The model with an attention and fresh weights; models of one seed differ in their attention only."""
        torch.manual_seed(seed)
        return self.spec(attention).build()

    def as_dict(self) -> dict[str, Any]:
        """The plan as one flat dict of JSON's types."""
        values = asdict(self)
        recipe = {**values.pop("recipe"), "horizon": _horizon_text(self.recipe.horizon)}
        return {**recipe, **{name: _plain(value) for name, value in values.items()}}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Plan":
        """The plan of which `stored` is the `as_dict`."""
        names = {item.name for item in fields(Recipe)}
        recipe = {name: value for name, value in stored.items() if name in names}
        recipe["horizon"] = parse_horizon(recipe.get("horizon", "fixed"))
        return cls(Recipe(**recipe), **{name: _tuples(value) for name, value in stored.items() if name not in names})

    def differences(self, stored: dict[str, Any]) -> list[str]:
        """The settings that differ from `stored`, a result of `as_dict`, in words."""
        own = self.as_dict()
        names = sorted(own.keys() | stored.keys())
        return [
            f"{name} {stored.get(name)!r} there, {own.get(name)!r} now"
            for name in names
            if stored.get(name) != own.get(name)
        ]


def _horizon_text(horizon: Horizon) -> str:
    """As `parse_horizon` reads it; a horizon with a solver or an adjoint of its own only as its representation."""
    return str(horizon) if parse_horizon(str(horizon)) == horizon else repr(horizon)


def parse_solver(label: str) -> solvers.Solver:
    """ "rk4-5" is RK4 with five steps over the horizon; "nesterov" has no step count."""
    match = re.fullmatch(r"(.+?)(?:-(\d+))?", label)
    name, steps = match.groups() if match else (label, None)
    return solvers.get(name, num_steps=int(steps)) if steps else solvers.get(name)


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
