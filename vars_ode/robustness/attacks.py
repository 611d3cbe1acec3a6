"""Adversarial attacks by the gradient of the cross entropy within a ball: FGSM and PGD.

Both take a `model` that maps images in [0, 1] to logits. A model that expects normalised images is wrapped:
``torch.nn.Sequential(torchvision.transforms.v2.Normalize(mean, std), model)``. The attack is run in evaluation mode and
every module is put back into the mode it had; the parameters' ``.grad`` is not touched; callers under
``torch.no_grad()`` or ``torch.inference_mode()`` are served as well.

The defaults, the l_inf ball of eps = 1/255 and for PGD five steps of 0.5/255 from a random start, are those of the VARS
paper (Shi et al. 2022, arXiv 2204.10962) on ImageNet. Small grey images need a larger eps to be hurt, such as 8/255.

An attack without gradients is in `vars_ode.robustness.square`, AutoAttack in `vars_ode.robustness.autoattack`.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vars_ode.measuring import evaluation_mode
from vars_ode.robustness._common import check_attack, check_classes, check_images, check_labels, check_logits
from vars_ode.robustness.norms import ball
from vars_ode.robustness.randomness import check_indices

__all__ = ["Draws", "fgsm", "pgd"]


@dataclass(frozen=True)
class Draws:
    """Models to average the gradient over, where a model is random (expectation over transformation, Athalye et al.
    2018, arXiv 1707.07397).

    Args:
        draw: ``draw(number) -> model`` gives the model with its random part drawn for the number 0, 1, 2, ..., of the
            same signature as the attacked one. Every step takes new numbers.
        count: models per step.
    """

    draw: Callable[[int], nn.Module]
    count: int = 8

    def __post_init__(self) -> None:
        if self.count != int(self.count) or self.count < 1:
            raise ValueError(f"Draws got count={self.count!r}; expected an integer of at least 1.")


def fgsm(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float = 1 / 255,
    targeted: bool = False,
    *,
    norm: str = "linf",
    draws: Draws | None = None,
) -> Tensor:
    """The fast gradient sign method (Goodfellow, Shlens and Szegedy 2015, arXiv 1412.6572).

        x' = clip(x + eps sign(grad_x CE(model(x), y)), 0, 1)

    Args:
        model: maps (batch, channels, height, width) in [0, 1] to logits (batch, classes).
        images: (batch, channels, height, width), floating-point in [0, 1]. Not changed.
        labels: (batch,) int64, the true classes; with `targeted` the classes that the model shall be led to.
        eps: radius of the ball, on the [0, 1] scale.
        targeted: descend towards `labels` instead of ascending away from them.
        norm: of the ball. "linf"; or "l2", with the gradient over its l2 norm in place of its sign.
        draws: average the gradient over these models, see `Draws`; None for the gradient of `model`.

    Returns:
        Adversarial images of the same shape, dtype and device, in [0, 1] and within eps of the images.

    Raises:
        ValueError: for wrong images, eps or norm, or labels that are not int64 classes of the model.
        RuntimeError: where no gradient reaches the images, or logits or gradient are not finite. A gradient that is
            zero on the whole batch gives a RuntimeWarning: the images come back as they were, which says nothing about
            robustness.
    """
    check_images(images, "fgsm")
    check_labels(labels, images, "fgsm")
    check_attack("fgsm", eps=eps)
    region = ball(norm)
    with torch.inference_mode(False), evaluation_mode(model):
        clean, labels = images.detach().clone(), labels.clone()
        gradient = _gradient(_models(model, draws, 0), clean, labels, "fgsm")
        _warn_if_zero(gradient, "fgsm")
        return (clean + _direction(targeted) * eps * region.steepest(gradient)).clamp(0, 1)


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float = 1 / 255,
    step_size: float = 0.5 / 255,
    num_steps: int = 5,
    random_start: bool = True,
    seed: int = 0,
    targeted: bool = False,
    indices: Tensor | Sequence[int] | None = None,
    *,
    norm: str = "linf",
    restarts: int = 1,
    draws: Draws | None = None,
) -> Tensor:
    """Projected gradient descent (Madry et al. 2018, arXiv 1706.06083): FGSM steps, projected back onto the ball.

        x_{k+1} = clip(x_k + step_size sign(grad_x CE(model(x_k), y)), max(x - eps, 0), min(x + eps, 1))

    Args:
        model: maps (batch, channels, height, width) in [0, 1] to logits (batch, classes).
        images: (batch, channels, height, width), floating-point in [0, 1]. Not changed.
        labels: (batch,) int64, the true classes; with `targeted` the classes that the model shall be led to.
        eps: radius of the ball, on the [0, 1] scale.
        step_size: of each step, on the [0, 1] scale. With another eps scale it along: step_size = eps / 2.
        num_steps: number of steps. The default's five half steps reach every corner of the ball from any start in it.
        random_start: start at a uniformly random point of the ball, so that a flat spot at the image does not stop the
            attack.
        seed: of the random start. An image's start depends on the seed and the image's index alone: neither on the
            images beside it nor on the device. Under another eps it is the same point of the ball, scaled.
        targeted: descend towards `labels` instead of ascending away from them.
        indices: (batch,) int64, the images' positions in the whole data set; None for 0, 1, ..., batch - 1.
        norm: of the ball. "linf"; or "l2", with steps along the gradient over its l2 norm.
        restarts: from other starts. Kept is the first result that misleads the model, else the one of the largest loss.
        draws: average the gradient over these models, see `Draws`; None for the gradient of `model`.

    Returns:
        The last iterate: images of the same shape, dtype and device, in [0, 1] and within eps of the images.

    Raises:
        As `fgsm`, and ValueError for a step size that is not positive, a number of steps or restarts below 1, restarts
        without a random start, or indices that are not one integer of at least 0 per image. The RuntimeWarning of a
        gradient that is zero on the whole batch is given where that is so at the first step.
    """
    check_images(images, "pgd")
    check_labels(labels, images, "pgd")
    check_attack("pgd", eps=eps, step_size=step_size, num_steps=num_steps, restarts=restarts)
    if restarts > 1 and not random_start:
        raise ValueError(f"pgd got restarts={restarts} without a random start: all would be the same. Leave one out.")
    region, places = ball(norm), check_indices(indices, images.shape[0], "pgd")
    with torch.inference_mode(False), evaluation_mode(model):
        clean, labels = images.detach().clone(), labels.clone()

        def once(restart: int) -> Tensor:
            start = eps * region.start(clean, seed, restart, places) if random_start else torch.zeros_like(clean)
            found = region.project(clean + start, clean, eps)
            for step in range(num_steps):
                models = _models(model, draws, restart * num_steps + step)
                gradient = _gradient(models, found, labels, "pgd")
                if step == 0 and restart == 0:
                    _warn_if_zero(gradient, "pgd")
                stepped = found + _direction(targeted) * step_size * region.steepest(gradient)
                found = region.project(stepped, clean, eps)
            return found

        return once(0) if restarts == 1 else _best(model, map(once, range(restarts)), labels, targeted)


def _best(model: nn.Module, found: Iterator[Tensor], labels: Tensor, targeted: bool) -> Tensor:
    """Of several results for each image the first that misleads the model, else the one of the largest loss."""
    best, best_score = next(found), None
    for candidate in (best, *found):
        with torch.no_grad():
            logits = model(candidate)
        check_logits(logits, candidate, "pgd")
        score = _direction(targeted) * F.cross_entropy(logits, labels, reduction="none")
        misled = (logits.argmax(1) == labels) == targeted
        score = torch.where(misled, torch.inf, score)
        if best_score is None:
            best_score = score
            continue
        better = score > best_score  # so that the first of those that mislead stays
        best = torch.where(better.view(-1, 1, 1, 1), candidate, best)
        best_score = torch.where(better, score, best_score)
    return best


def _models(model: nn.Module, draws: Draws | None, step: int) -> list[nn.Module]:
    """The models whose gradients are averaged at a step."""
    if draws is None:
        return [model]
    return [draws.draw(step * draws.count + number).eval() for number in range(draws.count)]


def _gradient(models: Sequence[nn.Module], images: Tensor, labels: Tensor, caller: str) -> Tensor:
    """The mean over the models of the gradient of the cross entropy to the images, of which each has its own."""
    total = sum(_gradient_of_one(model, images, labels, caller) for model in models)
    return total / len(models)  # type: ignore[return-value]


def _gradient_of_one(model: nn.Module, images: Tensor, labels: Tensor, caller: str) -> Tensor:
    """The gradient of the cross entropy to the images, summed, so that it does not depend on the batch."""
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        logits = model(images)
        check_logits(logits, images, caller)
        check_classes(labels, logits, caller)  # before the loss: CUDA would abort there, and -100 be passed over
        loss = F.cross_entropy(logits, labels, reduction="sum")
        # autograd.grad and not backward(): the latter would add to the .grad of every parameter.
        found = torch.autograd.grad(loss, images, allow_unused=True)[0] if loss.requires_grad else None
    if found is None:
        raise RuntimeError(
            f"{caller}: no gradient reaches the images, so an attack would return them unchanged and the model would "
            "seem robust. Look for torch.no_grad(), detach(), argmax, a conversion to numpy, or a solver without "
            "gradients in its forward."
        )
    if not found.isfinite().all():
        raise RuntimeError(
            f"{caller}: the gradient to the images is not finite. Try float32 or float64, or a shorter horizon."
        )
    return found


def _direction(targeted: bool) -> int:
    return -1 if targeted else 1


def _warn_if_zero(gradient: Tensor, caller: str) -> None:
    if gradient.numel() > 0 and not gradient.any():
        warnings.warn(
            f"{caller}: the gradient to the images is exactly zero on the whole batch, so the attack cannot move them. "
            "The model masks its gradient (saturated softmax, rounding, a threshold that returns zero); its accuracy "
            "here is no evidence of robustness.",
            RuntimeWarning,
            stacklevel=3,
        )
