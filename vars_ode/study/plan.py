"""The plan of a study: everything that its results depend on, except attention and seed."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

import solvers
from vars_ode.building import SMALL_MODEL, ModelSpec
from vars_ode.data import Preprocessing
from vars_ode.models import named_attention, parse_solves, training_settings
from vars_ode.training import Horizon, Recipe, parse_horizon

PGD_STEPS = 5
PGD_STEP = 0.25  # the length of a step, as a share of eps
EXACT = "exact"  # the label of attentions that have no solver


@dataclass(frozen=True)
class Arm:
    """One of the models that a study compares, where more than the attention differs.

    Args:
        attention: out of `vars_ode.available_attentions`.
        options: of the attention, beside or instead of the plan's.
        recipe: fields of the plan's recipe that are otherwise here, such as {"horizon": "uniform 1-10"}.
    """

    attention: str
    options: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """The settings of all runs in a results folder. Runs with further attentions and seeds can be added later.

    Args:
        recipe: how each model is trained.
        model: a model of timm's, built with each attention.
        model_options: its keyword arguments.
        solver: with which the VARS models are trained, as `vars_ode.models.parse_solves` reads it.
        sparsity: lam.
        ridge: of the elastic net; a small one gives the VARS models an equilibrium that is reached in tens of steps.
        num_features: random features per head; VARS-SD has as many static templates.
        train_images: the first so many of the embedded training images.
        test_images: so many of the embedded test images, evenly spread.
        severities: of the corruptions.
        corruptions: their names.
        sweep: the solves that the trained models are measured with, for `parse_solves`; "" for none.
        sweep_conditions: the (condition, severity) in which they are, clean images first.
        attacks: out of "fgsm" and "pgd".
        eps: of both, on the [0, 1] scale; PGD takes `PGD_STEPS` steps of `PGD_STEP` * eps from a random start.
        arms: names for models that differ in more than their attention; a study takes them like attentions' names.
    """

    recipe: Recipe = field(default_factory=lambda: Recipe(epochs=5, batch_size=50))
    model: str = SMALL_MODEL
    model_options: dict[str, Any] = field(default_factory=dict)
    solver: str = "euler@5"
    sparsity: float = 0.3
    ridge: float = 0.0
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
    sweep: str = "euler@1,2,3,5,10,20; rk4@5; fixed_point"
    sweep_conditions: tuple[tuple[str, int], ...] = (("clean", 0), ("small_gaussian_noise", 2))
    attacks: tuple[str, ...] = ("fgsm", "pgd")
    eps: float = 8 / 255
    arms: dict[str, Arm] = field(default_factory=dict)

    def __post_init__(self) -> None:
        solvers.checks.non_negative_number("sparsity", self.sparsity)
        solvers.checks.non_negative_number("ridge", self.ridge)
        for attack in self.attacks:
            solvers.checks.one_of("attack", attack, ("fgsm", "pgd"))
        training_settings(self.solver)
        if self.sweep:
            parse_solves(self.sweep)
        for name in self.arms:
            if re.fullmatch(r"[\w ,.+-]+", name) is None:  # folders and labels are called so
                raise ValueError(f"an arm's name is made of letters, digits, spaces and _,.+-, got {name!r}")
            self.recipe_of(name)
        for name in ("train_images", "test_images"):
            solvers.checks.positive_int(name, getattr(self, name))

    def arm(self, name: str) -> Arm:
        """What a name stands for: an arm of the plan, or an attention."""
        return self.arms.get(name) or Arm(name)

    def spec(self, name: str) -> ModelSpec:
        """The model of an arm or with an attention, and those options of the plan that the attention takes."""
        arm = self.arm(name)
        chosen = named_attention(arm.attention)
        options: dict[str, Any] = {}
        if chosen.is_vars:
            options = {"sparsity": self.sparsity, "ridge": self.ridge, **training_settings(self.solver)}
        if "num_features" in chosen.option_names and chosen.options.get("dictionary") != "softmax":
            options["num_features"] = self.num_features
        return ModelSpec(self.model, chosen.name, {**options, **arm.options}, model_options=self.model_options)

    def recipe_of(self, name: str) -> Recipe:
        """How the model of an arm is trained."""
        changes = dict(self.arm(name).recipe)
        _refuse_unknown(f"the recipe of arm {name!r}", changes, {item.name for item in fields(Recipe)})
        if "horizon" in changes:
            changes["horizon"] = parse_horizon(changes["horizon"])
        return replace(self.recipe, **changes)

    def build(self, name: str, seed: int) -> nn.Module:
        """The model of an arm or attention with fresh weights; models of one seed differ in it only.

        A study trains on images in [0, 1] as they are, which is put down in the model.
        """
        torch.manual_seed(seed)
        model = self.spec(name).build()
        Preprocessing.of(model).unnormalized().record_in(model)
        return model

    def as_dict(self) -> dict[str, Any]:
        """The plan as one flat dict of JSON's types."""
        values = asdict(self)
        recipe = {**values.pop("recipe"), "horizon": _horizon_text(self.recipe.horizon)}
        return {**recipe, **{name: _plain(value) for name, value in values.items()}}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Plan":
        """The plan of which `stored` is the `as_dict`, or that a person wrote so.

        Raises:
            ValueError: for a name that is no setting, with the nearest that is one, or an invalid value.
        """
        names = {item.name for item in fields(Recipe)}
        settings = {item.name for item in fields(cls)} - {"recipe"}
        _refuse_unknown("the plan", stored, names | settings)
        recipe = {name: value for name, value in stored.items() if name in names}
        recipe["horizon"] = parse_horizon(recipe.get("horizon", "fixed"))
        values = {name: _tuples(value) for name, value in stored.items() if name in settings}
        values["arms"] = {name: _arm(name, arm) for name, arm in (stored.get("arms") or {}).items()}
        return cls(Recipe(**recipe), **values)

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


def read_plan(path: Path) -> tuple[Plan, list[str], int]:
    """A plan from a YAML file, with the names of the arms or attentions to train, and the number of seeds.

    The file holds the settings of `Recipe` and `Plan` by name, and `attentions` and `seeds`. Without `attentions` all
    the arms are trained.

    Raises:
        ValueError: the file cannot be read, or holds what is no plan.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read the plan {path}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no plan: settings by name, such as 'epochs: 8'; see docs/study/dial.yaml")
    names, seeds = content.pop("attentions", None), content.pop("seeds", 1)
    try:
        plan = Plan.from_dict(content)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds a setting of the wrong kind: {error}") from error
    return plan, list(names or plan.arms), seeds


def _arm(name: str, stored: Any) -> Arm:
    if not isinstance(stored, Mapping) or "attention" not in stored:
        raise ValueError(f"arm {name!r} must have an attention, and may have options and a recipe, got {stored!r}")
    _refuse_unknown(f"arm {name!r}", stored, {item.name for item in fields(Arm)})
    return Arm(**stored)


def _refuse_unknown(where: str, given: Mapping[str, Any], known: set[str]) -> None:
    for name in given:
        solvers.checks.one_of(f"setting of {where}", name, sorted(known))


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
