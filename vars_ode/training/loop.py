"""Training a classifier: a plain loop on timm's optimizer and scheduler factories."""

import math
from collections.abc import Callable
from typing import TypedDict

import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from vars_ode.training.horizon import SolveOfUpdate
from vars_ode.training.recipe import Recipe
from vars_ode.weight_decay import no_weight_decay

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


class Epoch(TypedDict):
    """The record of one pass over the data; the accuracy is that of augmented images in training mode."""

    epoch: int
    loss: float
    train_accuracy: float


class DivergedError(RuntimeError):
    """The loss became NaN or infinite."""


def flip_and_shift(images: Tensor, generator: torch.Generator, pixels: int = 2) -> Tensor:
    """Each image mirrored with probability 1/2, and moved by up to `pixels` both ways with its edge repeated.

    Args:
        images: (batch, channels, height, width).
        generator: a CPU generator.
    """
    batch, _, height, width = images.shape
    mirrored = torch.rand(batch, generator=generator) < 0.5
    images = torch.where(mirrored.view(-1, 1, 1, 1).to(images.device), images.flip(-1), images)
    padded = F.pad(images, [pixels] * 4, mode="replicate")
    offsets = torch.randint(2 * pixels + 1, (batch, 2), generator=generator)
    rows = (torch.arange(height) + offsets[:, :1]).view(batch, 1, height, 1).to(images.device)
    columns = (torch.arange(width) + offsets[:, 1:]).view(batch, 1, 1, width).to(images.device)
    sample = torch.arange(batch, device=images.device).view(-1, 1, 1, 1)
    channel = torch.arange(images.shape[1], device=images.device).view(1, -1, 1, 1)
    return padded[sample, channel, rows, columns]


def fit(
    model: nn.Module,
    data: Dataset[tuple[Tensor, ...]],
    recipe: Recipe,
    *,
    seed: int = 0,
    augment: Augmentation | None = None,
    progress: Callable[[int, int], object] | None = None,
    on_epoch: Callable[[Epoch], object] | None = None,
) -> list[Epoch]:
    """Train `model` in place on the device it is on.

    Args:
        model: images (batch, channels, height, width) -> logits (batch, classes).
        data: a `TensorDataset` of (images in [0, 1], int64 labels).
        recipe: how.
        seed: of the order of the images, of the augmentation and of random horizons; dropout draws from torch's global
            generator.
        augment: applied to each batch of images.
        progress: called as ``progress(update, updates)`` after each update.
        on_epoch: called with each epoch's record.

    Returns:
        a record per epoch.

    Raises:
        DivergedError: the loss is not finite; the message says at which update.
        ValueError: fewer images than a batch, or labels that are not int64 classes of the model.
    """
    images, labels = _tensors(data)
    updates_per_epoch = len(images) // recipe.batch_size
    if updates_per_epoch == 0:
        raise ValueError(f"{len(images)} images do not fill one batch of {recipe.batch_size}; lower batch_size")
    device = next(model.parameters()).device
    solve = SolveOfUpdate(model, recipe.horizon, seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = _optimizer(model, recipe)
    scheduler = _schedule(optimizer, recipe, updates_per_epoch)
    history: list[Epoch] = []
    for epoch in range(recipe.epochs):
        model.train()
        order = torch.randperm(len(images), generator=generator)
        total_loss, correct = 0.0, 0
        for batch in range(updates_per_epoch):
            chosen = order[batch * recipe.batch_size : (batch + 1) * recipe.batch_size]
            x, y = images[chosen].to(device), labels[chosen].to(device)
            update = epoch * updates_per_epoch + batch
            with solve.at(update):
                loss, logits = _update(model, optimizer, augment(x, generator) if augment else x, y, recipe)
            if not math.isfinite(loss):
                raise DivergedError(
                    f"the loss became {loss} at update {update} of epoch {epoch}; lower the learning rate "
                    f"({recipe.learning_rate}), or take a smaller rate or step in the attention's solver"
                )
            scheduler.step_update(update + 1)
            total_loss += loss
            correct += int((logits.argmax(1) == y).sum())
            if progress:
                progress(update + 1, recipe.epochs * updates_per_epoch)
        seen = updates_per_epoch * recipe.batch_size
        history.append({"epoch": epoch, "loss": total_loss / updates_per_epoch, "train_accuracy": correct / seen})
        if on_epoch:
            on_epoch(history[-1])
    return history


def _update(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, recipe: Recipe
) -> tuple[float, Tensor]:
    logits = model(x)
    _check_classes(y, logits.shape[1])
    loss = F.cross_entropy(logits, y, label_smoothing=recipe.label_smoothing)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad)
    optimizer.step()
    return loss.item(), logits.detach()


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    own: Callable[[], set[str]] = getattr(model, "no_weight_decay", set)
    groups = param_groups_weight_decay(
        model, recipe.weight_decay, no_weight_decay_list=(*own(), *no_weight_decay(model))
    )
    return create_optimizer_v2(groups, opt="adamw", lr=recipe.learning_rate)


def _schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, updates_per_epoch: int):  # type: ignore[no-untyped-def]
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=recipe.epochs,
        warmup_epochs=min(recipe.warmup_epochs, recipe.epochs / 2),
        warmup_lr=recipe.learning_rate / 100,
        warmup_prefix=False,
        min_lr=recipe.learning_rate / 100,
        step_on_epochs=False,
        updates_per_epoch=updates_per_epoch,
    )
    scheduler.step_update(0)
    return scheduler


def _tensors(data: Dataset[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor]:
    if not isinstance(data, TensorDataset) or len(data.tensors) != 2:
        raise ValueError(f"expected a TensorDataset of (images, labels), got {type(data).__name__}")
    images, labels = data.tensors
    if labels.dtype != torch.int64 or labels.ndim != 1:
        raise ValueError(
            f"expected class indices as labels, torch.int64 (images,), got {labels.dtype} {tuple(labels.shape)}"
        )
    return images, labels


def _check_classes(labels: Tensor, classes: int) -> None:
    """Before the loss, where a GPU would abort and torch passes -100 over without a word."""
    bad = (labels < 0) | (labels >= classes)
    if bool(bad.any()):
        raise ValueError(
            f"got the label {int(labels[bad][0])} for a model with {classes} classes; expected 0 to {classes - 1}. "
            "Leave out images without a class, and check that data set and model have the same classes"
        )
