"""Top-1 accuracy of a classifier on clean, corrupted and attacked images."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from vars_ode.robustness import corruptions
from vars_ode.robustness._common import check_images, check_labels, check_logits, evaluation_mode
from vars_ode.robustness.attacks import fgsm, pgd

__all__ = ["Row", "accuracy", "evaluate"]

Batches = Iterable[Sequence[Tensor]]
Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]
Progress = Callable[[str, int, int], object]
# (model, images, labels, index of the batch) -> images
_Perturbation = Callable[[nn.Module, Tensor, Tensor, int], Tensor]


class Row(TypedDict):
    """The accuracy under one condition."""

    condition: str  # "clean", the name of a corruption or of an attack
    severity: int  # from 1 for a corruption; 0 otherwise
    accuracy: float  # top-1, a fraction in [0, 1]


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
        ValueError: for no images, or labels that are not int64 of shape (batch,).
        RuntimeError: where the model returns NaN or infinite logits, or an output that is not (batch, classes).
    """
    return _accuracy(model, _batches(data, batch_size), _device(model, device), "accuracy", _unchanged)


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
    progress: Progress | None = None,
) -> Iterator[Row]:
    """Yields the accuracy under one condition after the other, so that a caller can print or save each as it comes.

    Every condition is one pass over the data. Corruptions depend on the seed, the batches and their order alone: two
    models see the same images if they get the same data with the same batch size and without shuffling.

    Args:
        model: as in `accuracy`, on images in [0, 1]; one that expects normalised images is wrapped in `nn.Sequential`.
        data: as in `accuracy`, with images in [0, 1]. An iterator that can be run through only once will not do.
        conditions: of ``"clean"``, the names of corruptions and of attacks; None for all of these.
        severities: the severities at which each corruption is tried.
        attacks: ``{name: attack(model, images, labels) -> images}``; None for FGSM and PGD at their defaults, eps =
            1/255. Another eps is bound with `functools.partial`: ``{"fgsm": partial(fgsm, eps=8 / 255)}``.
        device: as in `accuracy`.
        batch_size: as in `accuracy`; here it does change which noise an image gets.
        seed: of corruptions and of the default PGD's random start.
        progress: called as ``progress(condition, severity, images so far)`` after each batch.

    Returns:
        An iterator over `Row` dictionaries with the keys condition, severity (0 for clean images and attacks) and
        accuracy. The model is in evaluation mode only while a row is computed, not between rows.

    Raises:
        ValueError: at once for an unknown condition or severity; with the first row for images that are none, not in
            [0, 1] or of another rank.
        RuntimeError: where the model returns NaN or infinite logits, or no gradient reaches the images under an attack.
    """
    if attacks is None:
        attacks = {"fgsm": fgsm, "pgd": partial(pgd, seed=seed)}
    if isinstance(conditions, str):
        raise ValueError(
            f"evaluate got conditions={conditions!r}; expected a sequence of names, such as ({conditions!r},)."
        )
    if conditions is None:
        conditions = ("clean", *corruptions.available(), *attacks)
    clash = sorted(attacks.keys() & {"clean", *corruptions.available()})
    if clash:
        raise ValueError(f"evaluate got attacks named {clash}, as corruptions or clean images are; choose other names.")
    # Planned before the first pass: a misspelt name should not surface after hours.
    plan = list(chain.from_iterable(_plan(condition, severities, attacks, seed) for condition in conditions))
    return _rows(model, _batches(data, batch_size), _device(model, device), plan, progress)


def _rows(
    model: nn.Module,
    batches: Batches,
    device: torch.device,
    plan: list[tuple[str, int, _Perturbation]],
    progress: Progress | None,
) -> Iterator[Row]:
    for condition, severity, perturbation in plan:
        report = partial(progress, condition, severity) if progress is not None else None
        score = _accuracy(model, batches, device, f"evaluate on {condition!r}", perturbation, report, unit_range=True)
        yield {"condition": condition, "severity": severity, "accuracy": score}


def _plan(
    condition: str, severities: Sequence[int], attacks: Mapping[str, Attack], seed: int
) -> Iterator[tuple[str, int, _Perturbation]]:
    """The (condition, severity, perturbation) that one name stands for."""
    if condition == "clean":
        yield condition, 0, _unchanged
    elif condition in attacks:
        yield condition, 0, partial(_attacked, attacks[condition])
    elif condition in corruptions.available():
        count = len(corruptions.strengths(condition))
        for severity in severities:
            if severity not in range(1, count + 1):
                raise ValueError(
                    f"evaluate got severity {severity!r} for {condition!r}; expected integers from 1 to {count}."
                )
            yield condition, int(severity), partial(_corrupted, condition, int(severity), seed)
    else:
        known = ", ".join(("clean", *corruptions.available(), *attacks))
        raise ValueError(f"evaluate got the unknown condition {condition!r}; expected one of {known}.")


def _unchanged(model: nn.Module, images: Tensor, labels: Tensor, index: int) -> Tensor:
    return images


def _attacked(attack: Attack, model: nn.Module, images: Tensor, labels: Tensor, index: int) -> Tensor:
    return attack(model, images, labels)


def _corrupted(
    name: str, severity: int, seed: int, model: nn.Module, images: Tensor, labels: Tensor, index: int
) -> Tensor:
    # A seed of its own for each batch, or the images at one place of all batches would share their noise. The prime
    # keeps the batches of neighbouring seeds apart.
    return corruptions.corrupt(images, name, severity, seed=1_000_003 * seed + index)


def _accuracy(
    model: nn.Module,
    batches: Batches,
    device: torch.device,
    caller: str,
    perturbation: _Perturbation,
    report: Callable[[int], object] | None = None,
    unit_range: bool = False,
) -> float:
    """One pass: the fraction of perturbed images whose largest logit is the label's."""
    correct, total = torch.zeros((), dtype=torch.int64, device=device), 0
    with evaluation_mode(model):
        for index, (images, labels) in enumerate(batches):
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            if unit_range:
                check_images(images, caller)
            check_labels(labels, images, caller)
            images = perturbation(model, images, labels, index)
            with torch.no_grad():
                logits = model(images)
            check_logits(logits, images, caller)
            correct += (logits.argmax(dim=1) == labels).sum()
            total += images.shape[0]
            if report is not None:
                report(total)
    if total == 0:
        raise ValueError(
            f"{caller} got no images, of which there is no accuracy; give a data set that is not empty, or batches "
            "that can be run through more than once."
        )
    return int(correct) / total


def _batches(data: Dataset[Any] | Batches, batch_size: int) -> Batches:
    return DataLoader(data, batch_size=batch_size) if isinstance(data, Dataset) else data


def _device(model: nn.Module, device: torch.device | str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    parameter = next(model.parameters(), None)
    return parameter.device if parameter is not None else torch.device("cpu")
