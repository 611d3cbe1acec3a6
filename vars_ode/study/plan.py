"""The plan of a study: everything that its results depend on, except attention and seed."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from torch.utils.data import TensorDataset

import solvers
from vars_ode.building import SMALL_MODEL, ModelSpec
from vars_ode.data import EMBEDDED, FULL, Preprocessing, embedded_set, spread
from vars_ode.models import named_attention, parse_solves, training_settings
from vars_ode.training import Augmentation, Horizon, Recipe, augmentation_of, parse_horizon

ATTACKS = ("fgsm", "pgd", "square", "masking")
EXACT = "exact"  # the label of attentions that have no solver


@dataclass(frozen=True)
class Arm:
    """One of the models that a study compares, where more than the attention differs.

    Args:
        attention: out of `vars_ode.available_attentions`.
        options: of the attention, beside or instead of the plan's.
        recipe: fields of the plan's recipe that are otherwise here, such as {"horizon": "uniform 1-10"}.
        model_options: of the model, likewise, such as {"mlp_ratio": 2.4} for as many parameters as another arm has.
        solver: instead of the plan's.
        twin: the arm that this one is a variation of, and whose learning rate it takes.
        seeds: the first so many seeds of the study; all by default.
    """

    attention: str
    options: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    model_options: dict[str, Any] = field(default_factory=dict)
    solver: str | None = None
    twin: str | None = None
    seeds: int | None = None


@dataclass(frozen=True)
class Plan:
    """The settings of all runs in a results folder. Runs with further attentions and seeds can be added later.

    Args:
        recipe: how each model is trained.
        data: a name out of `vars_ode.data.EMBEDDED_SETS`.
        model: a model of timm's, built with each attention.
        model_options: its keyword arguments.
        solver: with which the VARS models are trained, as `vars_ode.models.parse_solves` reads it.
        sparsity: lam.
        ridge: of the elastic net; a small one gives the VARS models an equilibrium that is reached in tens of steps.
        num_features: random features per head; VARS-SD has as many static templates.
        train_images: the first so many of the training images.
        validation_images: the last so many of them, measured after each epoch and not trained on.
        learning_rates: what `recipe.lr` is chosen from for each arm, by the accuracy on the validation images; none for
            the recipe's own.
        selection_seeds: the seeds 0, 1, ... that this is decided on.
        test_images: so many of the test images, evenly spread.
        severities: of the corruptions.
        corruptions: their names.
        shifts: further ones that are measured likewise, and stay out of means over the corruptions.
        sweep: the solves that the trained models are measured with, for `parse_solves`; "" for none.
        sweep_conditions: the (condition, severity) in which they are, clean images first.
        attacks: out of "fgsm", "pgd", "square" and "masking", which is PGD through the solve of the model and through
            others, and Square, side by side.
        attack_images: so many of the test images, evenly spread, are attacked; as many as are measured by default.
        eps: of all attacks, on the [0, 1] scale.
        attack_steps: of PGD, from a random start.
        attack_step: their length, as a share of eps.
        restarts: of PGD.
        queries: of Square.
        transfer: the solves that "masking" attacks through, for `parse_solves`.
        objects: measure where the maps of the trained models look, and how far they are from self-attention.
        arms: names for models that differ in more than their attention; a study takes them like attentions' names.
    """

    recipe: Recipe = field(default_factory=lambda: Recipe(epochs=5, batch_size=50))
    data: str = EMBEDDED
    model: str = SMALL_MODEL
    model_options: dict[str, Any] = field(default_factory=dict)
    solver: str = "euler@5"
    sparsity: float = 0.3
    ridge: float = 0.0
    num_features: int = 16
    train_images: int = 5000
    validation_images: int = 0
    learning_rates: tuple[float, ...] = ()
    selection_seeds: int = 1
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
    shifts: tuple[str, ...] = ()
    sweep: str = "euler@1,2,3,5,10,20; rk4@5; fixed_point"
    sweep_conditions: tuple[tuple[str, int], ...] = (("clean", 0), ("small_gaussian_noise", 2))
    attacks: tuple[str, ...] = ("fgsm", "pgd")
    attack_images: int | None = None
    eps: float = 8 / 255
    attack_steps: int = 5
    attack_step: float = 0.25
    restarts: int = 1
    queries: int = 200
    transfer: str = "rk4@5"
    objects: bool = False
    arms: dict[str, Arm] = field(default_factory=dict)

    def __post_init__(self) -> None:
        solvers.checks.non_negative_number("sparsity", self.sparsity)
        solvers.checks.non_negative_number("ridge", self.ridge)
        for attack in self.attacks:
            solvers.checks.one_of("attack", attack, ATTACKS)
        embedded_set(self.data)
        training_settings(self.solver)
        for solves in (self.sweep, self.transfer):
            if solves:
                parse_solves(solves)
        for rate in self.learning_rates:
            solvers.checks.positive_number("learning_rates", rate)
        if self.objects and self.data not in (EMBEDDED, FULL):
            raise ValueError(f"objects have masks in {EMBEDDED!r} and {FULL!r} alone, got data={self.data!r}")
        if self.learning_rates and not self.validation_images:
            raise ValueError("learning rates are chosen on validation images; give validation_images too")
        for name in self.arms:
            if re.fullmatch(r"[\w ,.+-]+", name) is None:  # folders and labels are called so
                raise ValueError(f"an arm's name is made of letters, digits, spaces and _,.+-, got {name!r}")
            self.recipe_of(name)
            if self.arm(name).seeds is not None:
                solvers.checks.positive_int(f"seeds of arm {name!r}", self.arm(name).seeds)
            twin = self.arm(name).twin
            if twin is not None and self.arm(twin).twin is not None:
                raise ValueError(f"arm {name!r} is a variation of {twin!r}, which is one itself; name its twin")
        for name in ("train_images", "test_images", "attack_steps", "restarts", "queries", "selection_seeds"):
            solvers.checks.positive_int(name, getattr(self, name))
        solvers.checks.positive_number("attack_step", self.attack_step)
        if self.validation_images:
            solvers.checks.positive_int("validation_images", self.validation_images)
        if self.attack_images is not None and not 0 < self.attack_images <= self.test_images:
            raise ValueError(
                f"attack_images must be among the {self.test_images} test images, got {self.attack_images}"
            )

    def arm(self, name: str) -> Arm:
        """What a name stands for: an arm of the plan, or an attention."""
        return self.arms.get(name) or Arm(name)

    def spec(self, name: str) -> ModelSpec:
        """The model of an arm or with an attention, and those options of the plan that the attention takes."""
        arm = self.arm(name)
        chosen = named_attention(arm.attention)
        options: dict[str, Any] = {}
        if chosen.is_vars:
            options = {"sparsity": self.sparsity, "ridge": self.ridge, **training_settings(self.solver_of(name))}
        if "num_features" in chosen.option_names and chosen.options.get("dictionary") != "softmax":
            options["num_features"] = self.num_features
        model_options = {**self.model_options, **arm.model_options}
        return ModelSpec(self.model, chosen.name, {**options, **arm.options}, model_options=model_options)

    def solver_of(self, name: str) -> str:
        """The solve that the model of an arm or with an attention is trained with."""
        return self.arm(name).solver or self.solver

    def images(self, part: str) -> TensorDataset:
        """Those of the "train", "validation" or "test" part.

        Raises:
            ValueError: the set holds fewer.
        """
        images, labels = embedded_set(self.data).load("test" if part == "test" else "train").tensors
        if part == "test":
            chosen = torch.tensor(spread(len(labels), self.test_images))
            return TensorDataset(images[chosen], labels[chosen])
        if self.train_images + self.validation_images > len(labels):
            raise ValueError(
                f"{self.data} has {len(labels)} training images, got train_images={self.train_images} and "
                f"validation_images={self.validation_images}"
            )
        first = 0 if part == "train" else len(labels) - self.validation_images
        count = self.train_images if part == "train" else self.validation_images
        return TensorDataset(images[first : first + count], labels[first : first + count])

    @property
    def augmentation(self) -> Augmentation:
        return augmentation_of(embedded_set(self.data).mirrors)

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
        """The settings that differ from `stored`, a result of `as_dict`, in words; arms may come and go."""
        own = self.as_dict()
        own_arms, their_arms = own.pop("arms"), stored.get("arms", {})
        names = sorted(own.keys() | (stored.keys() - {"arms"}))
        pairs = [(name, stored.get(name), own.get(name)) for name in names]
        pairs += [(f"arm {name!r}", their_arms[name], own_arms[name]) for name in own_arms if name in their_arms]
        return [f"{name} {there!r} there, {here!r} now" for name, there, here in pairs if there != here]


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
