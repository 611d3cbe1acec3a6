"""Top-1 accuracy of a classifier on clean, corrupted and attacked images, and what it answered for each of them."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from vars_ode.measuring import evaluation_mode
from vars_ode.robustness import corruptions
from vars_ode.robustness._common import (
    check_classes,
    check_images,
    check_labels,
    check_logits,
    did_you_mean,
)
from vars_ode.robustness.attacks import fgsm, pgd
from vars_ode.robustness.outcome import Outcome, Row
from vars_ode.robustness.randomness import check_indices

__all__ = ["accuracy", "evaluate", "outcomes"]

Batches = Iterable[Sequence[Tensor]]
Attack = Callable[..., Tensor]
Progress = Callable[[str, int, int], object]
# (model, images, labels, indices) -> images
_Perturbation = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class _Condition:
    """What is done to the images in one pass over the data."""

    name: str
    severity: int
    perturbation: _Perturbation


def accuracy(
    model: nn.Module,
    data: Dataset[Any] | Batches,
    device: torch.device | str | None = None,
    batch_size: int = 256,
) -> float:
    """Top-1 accuracy, a fraction in [0, 1].

    Args:
        model: maps images (batch, channels, height, width) to logits (batch, classes). Run in evaluation mode, without
            gradient; every module is put back into the mode it had.
        data: a data set of (image, label), batched here in order, or batches of (images, labels (batch,) int64), such
            as a `DataLoader`.
        device: where each batch is moved; None for that of the model's first parameter. The model is not moved.
        batch_size: images per batch where `data` is a data set. No effect on the result, but on memory.

    Raises:
        ValueError: for no images, or labels that are not int64 of shape (batch,) or not among the model's classes.
        RuntimeError: where the model returns NaN or infinite logits, or an output that is not (batch, classes).
    """
    clean = _Condition("clean", 0, _unchanged)
    return _outcome(model, _batches(data, batch_size), _device(model, device), "accuracy", clean).accuracy


def evaluate(
    model: nn.Module,
    data: Dataset[Any] | Batches,
    conditions: Sequence[str] | None = None,
    severities: Sequence[int] = (1, 2, 3),
    *,
    attacks: Mapping[str, Attack] | None = None,
    device: torch.device | str | None = None,
    batch_size: int = 256,
    seed: int = 0,
    indices: Tensor | Sequence[int] | None = None,
    progress: Progress | None = None,
) -> Iterator[Row]:
    """Yields the accuracy under one condition after the other, so that a caller can print or save each as it comes.

    Arguments and errors are those of `outcomes`, of which each row is the count.

    Returns:
        An iterator over `Row` dictionaries with the keys condition, severity (0 for clean images and attacks) and
        accuracy. The model is in evaluation mode only while a row is computed, not between rows.
    """
    found = outcomes(
        model,
        data,
        conditions,
        severities,
        attacks=attacks,
        device=device,
        batch_size=batch_size,
        seed=seed,
        indices=indices,
        progress=progress,
    )
    return (outcome.row for outcome in found)


def outcomes(
    model: nn.Module,
    data: Dataset[Any] | Batches,
    conditions: Sequence[str] | None = None,
    severities: Sequence[int] = (1, 2, 3),
    *,
    attacks: Mapping[str, Attack] | None = None,
    device: torch.device | str | None = None,
    batch_size: int = 256,
    seed: int = 0,
    indices: Tensor | Sequence[int] | None = None,
    progress: Progress | None = None,
) -> Iterator[Outcome]:
    """Yields what the model answered for each image under one condition after the other.

    Every condition is one pass over the data. What is done to an image depends on seed, condition, severity and the
    image's index alone, so that two models meet the same images, and batch size, order of conditions and number of
    processes change nothing (but for logits so near each other that the model's own rounding decides). Processes that
    share a data set give the `indices` of their images and put their outcomes together with `Outcome.merge`.

    Args:
        model: as in `accuracy`, on images in [0, 1]; one that expects normalised images is wrapped in `nn.Sequential`.
        data: as in `accuracy`, with images in [0, 1]. An iterator that can be run through only once will not do.
        conditions: of ``"clean"``, the names of corruptions and of attacks; None for all of these but ImageNet-C's.
        severities: the severities at which each corruption is tried.
        attacks: ``{name: attack(model, images, labels) -> images}``; None for FGSM and PGD at their defaults, eps =
            1/255. Another eps is bound with `functools.partial`: ``{"fgsm": partial(fgsm, eps=8 / 255)}``. An attack
            that has a parameter `indices`, as `pgd` has, is given the indices of the images, for its random numbers.
        device: as in `accuracy`.
        batch_size: as in `accuracy`.
        seed: of corruptions and of the default PGD's random start.
        indices: (images,) int64, for each image of `data` its position in the whole data set; None for 0, 1, 2, ... in
            the order in which they come. An index that occurs twice, as in padded shards, is counted once.
        progress: called as ``progress(condition, severity, images so far)`` after each batch.

    Returns:
        An iterator over `Outcome`, each with its images in the order of their indices, on the CPU. The model is in
        evaluation mode only while one is computed, not in between.

    Raises:
        ValueError: at once for an unknown condition or severity; with the first outcome for images that are none, not
            in [0, 1] or of another rank, for labels that are not among the model's classes, or for indices that do not
            fit the images.
        RuntimeError: where the model returns NaN or infinite logits, or no gradient reaches the images under an attack.
    """
    if attacks is None:
        attacks = {"fgsm": fgsm, "pgd": partial(pgd, seed=seed)}
    # Planned before the first pass: a misspelt name should not surface after hours.
    plan = _plan(conditions, severities, attacks, seed)
    batches, device = _batches(data, batch_size), _device(model, device)
    places = None if indices is None else torch.tensor(check_indices(indices, len(indices), "evaluation"))
    return (
        _outcome(model, batches, device, f"evaluation on {condition.name!r}", condition, places, progress, True)
        for condition in plan
    )


def _plan(
    conditions: Sequence[str] | None, severities: Sequence[int], attacks: Mapping[str, Attack], seed: int
) -> list[_Condition]:
    if isinstance(conditions, str):
        raise ValueError(
            f"evaluation got conditions={conditions!r}; expected a sequence of names, such as ({conditions!r},)."
        )
    clash = sorted(attacks.keys() & {"clean", *corruptions.accepted_names()})
    if clash:
        raise ValueError(
            f"evaluation got attacks named {clash}, as corruptions or clean images are; choose other names."
        )
    if conditions is None:
        conditions = ("clean", *corruptions.available("small"), *corruptions.available(""), *attacks)
    return [planned for name in conditions for planned in _expand(name, severities, attacks, seed)]


def _expand(
    condition: str, severities: Sequence[int], attacks: Mapping[str, Attack], seed: int
) -> Iterator[_Condition]:
    """The passes that one name stands for."""
    if condition == "clean":
        yield _Condition(condition, 0, _unchanged)
    elif condition in attacks:
        yield _Condition(condition, 0, _attacked(attacks[condition]))
    elif condition in corruptions.accepted_names():
        name = corruptions.canonical_name(condition)
        count = len(corruptions.strengths(name))
        for severity in severities:
            if severity not in range(1, count + 1):
                raise ValueError(
                    f"evaluation got severity {severity!r} for {name!r}; expected integers from 1 to {count}."
                )
            yield _Condition(name, int(severity), _corrupted(name, int(severity), seed))
    else:
        others = ("clean", *attacks)
        known = ", ".join(("clean", *corruptions.available(), *attacks))
        raise ValueError(
            f"evaluation got the unknown condition {condition!r}; expected one of {known}."
            f"{did_you_mean(condition, corruptions.accepted_names() | {name: name for name in others})}"
        )


def _unchanged(model: nn.Module, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
    return images


def _attacked(attack: Attack) -> _Perturbation:
    if _takes_indices(attack):
        return lambda model, images, labels, indices: attack(model, images, labels, indices=indices)
    return lambda model, images, labels, indices: attack(model, images, labels)


def _takes_indices(attack: Attack) -> bool:
    try:
        return "indices" in inspect.signature(attack).parameters
    except (TypeError, ValueError):  # a callable without a signature, such as one of an extension module
        return False


def _corrupted(name: str, severity: int, seed: int) -> _Perturbation:
    return lambda model, images, labels, indices: corruptions.corrupt(images, name, severity, seed, indices)


def _outcome(
    model: nn.Module,
    batches: Batches,
    device: torch.device,
    caller: str,
    condition: _Condition,
    indices: Tensor | None = None,
    progress: Progress | None = None,
    unit_range: bool = False,
) -> Outcome:
    """One pass over the data: the class of the largest logit for each perturbed image."""
    found, total = [], 0
    with evaluation_mode(model):
        for images, labels in batches:
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            if unit_range:
                check_images(images, caller)
            check_labels(labels, images, caller)
            places = _places(indices, total, images.shape[0], caller)
            predictions = _predict(model, condition.perturbation(model, images, labels, places), labels, caller)
            found.append(Outcome(condition.name, condition.severity, places, labels.cpu(), predictions.cpu()))
            total += images.shape[0]
            if progress is not None:
                progress(condition.name, condition.severity, total)
    if total == 0:
        raise ValueError(
            f"{caller} got no images, of which there is no accuracy; give a data set that is not empty, or batches "
            "that can be run through more than once."
        )
    if indices is not None and len(indices) != total:
        raise ValueError(f"{caller} got {len(indices)} indices for {total} images; expected one per image.")
    return Outcome.merge(found)


def _places(indices: Tensor | None, start: int, count: int, caller: str) -> Tensor:
    """(count,) int64, the indices of a batch that begins at `start`."""
    if indices is None:
        return torch.arange(start, start + count)
    if start + count > len(indices):
        raise ValueError(
            f"{caller} got {len(indices)} indices for at least {start + count} images; expected one per image."
        )
    return indices[start : start + count]


@torch.no_grad()
def _predict(model: nn.Module, images: Tensor, labels: Tensor, caller: str) -> Tensor:
    """(batch,) int64, the classes of the largest logits."""
    logits = model(images)
    check_logits(logits, images, caller)
    check_classes(labels, logits, caller)
    return logits.argmax(dim=1)


def _batches(data: Dataset[Any] | Batches, batch_size: int) -> Batches:
    return DataLoader(data, batch_size=batch_size) if isinstance(data, Dataset) else data


def _device(model: nn.Module, device: torch.device | str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    parameter = next(model.parameters(), None)
    return parameter.device if parameter is not None else torch.device("cpu")
