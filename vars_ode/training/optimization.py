"""The parts of an update out of timm: optimizer, schedule, loss, mixing of images."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn

from vars_ode.training.recipe import Recipe
from vars_ode.weight_decay import no_weight_decay

Loss = Callable[[Tensor, Tensor], Tensor]


def optimizer_for(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """timm's optimizer, with the right parameters exempt from weight decay.

    Raises:
        ValueError: an unknown optimizer, or arguments that it does not take.
    """
    own: Callable[[], set[str]] = getattr(model, "no_weight_decay", set)
    exempt = (*own(), *no_weight_decay(model))
    if recipe.layer_decay is None:
        groups = param_groups_weight_decay(model, recipe.weight_decay, no_weight_decay_list=exempt)
    else:
        groups = param_groups_layer_decay(model, recipe.weight_decay, exempt, layer_decay=recipe.layer_decay)
    try:
        return create_optimizer_v2(
            groups, opt=recipe.opt, lr=recipe.lr, momentum=recipe.momentum, **_tuples(recipe.opt_kwargs)
        )
    except (TypeError, AssertionError) as error:
        raise ValueError(f"opt={recipe.opt!r} does not take these arguments: {error}") from error


def schedule_for(optimizer: torch.optim.Optimizer, recipe: Recipe, updates_per_epoch: int) -> Scheduler:
    """timm's schedule over the updates. Its rates depend on the number of the update alone."""
    if recipe.sched == "plateau":
        raise ValueError("sched='plateau' needs measurements; take 'cosine', 'step', 'poly' or another schedule")
    options = {
        "num_epochs": recipe.epochs,
        "warmup_epochs": min(recipe.warmup_epochs, recipe.epochs / 2),
        "warmup_lr": recipe.lr / 100 if recipe.warmup_lr is None else recipe.warmup_lr,
        "min_lr": recipe.lr / 100 if recipe.min_lr is None else recipe.min_lr,
        "warmup_prefix": False,
        **recipe.sched_kwargs,
    }
    try:
        scheduler, _ = create_scheduler_v2(
            optimizer, sched=recipe.sched, step_on_epochs=False, updates_per_epoch=updates_per_epoch, **options
        )
    except TypeError as error:
        raise ValueError(f"sched={recipe.sched!r} does not take these arguments: {error}") from error
    if scheduler is None:
        raise ValueError(f"unknown schedule sched={recipe.sched!r}; take 'cosine', 'tanh', 'step' or 'poly'")
    return scheduler


def mixer_for(recipe: Recipe, classes: int) -> Mixup | None:
    """timm's Mixup and CutMix, which also smooths the labels; None where nothing is mixed."""
    if not recipe.mixes:
        return None
    return Mixup(
        recipe.mixup,
        recipe.cutmix,
        prob=recipe.mixup_prob,
        switch_prob=recipe.mixup_switch_prob,
        mode=recipe.mixup_mode,
        label_smoothing=recipe.smoothing,
        num_classes=classes,
    )


def loss_for(recipe: Recipe) -> Loss:
    """The loss of logits for labels, or for the probabilities that a mixer made of them."""

    def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
        smoothing = 0.0 if target.is_floating_point() else recipe.smoothing
        return F.cross_entropy(logits, target, label_smoothing=smoothing)

    def binary(logits: Tensor, target: Tensor) -> Tensor:
        if not target.is_floating_point():
            classes = logits.shape[1]
            target = F.one_hot(target, classes) * (1 - recipe.smoothing) + recipe.smoothing / classes
        return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))

    return binary if recipe.bce_loss else cross_entropy


def check_classes(labels: Tensor, classes: int) -> None:
    """Before the loss, where a GPU would abort and torch passes -100 over without a word."""
    bad = (labels < 0) | (labels >= classes)
    if bool(bad.any()):
        raise ValueError(
            f"got the label {int(labels[bad][0])} for a model with {classes} classes; expected 0 to {classes - 1}. "
            "Leave out images without a class, and check that data set and model have the same classes"
        )


def _tuples(options: dict[str, object]) -> dict[str, object]:
    """Lists as tuples: optimizers compare betas with those."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
