"""Adversarial attacks on the cross entropy within an l_inf ball: FGSM and PGD.

Both take a `model` that maps images in [0, 1] to logits. A model that expects normalised images is wrapped:
``torch.nn.Sequential(torchvision.transforms.v2.Normalize(mean, std), model)``. The attack is run in evaluation mode and
every module is put back into the mode it had; the parameters' ``.grad`` is not touched; callers under
``torch.no_grad()`` or ``torch.inference_mode()`` are served as well.

The defaults, eps = 1/255 and for PGD five steps of 0.5/255 from a random start, are those of the VARS paper (Shi et al.
2022, arXiv 2204.10962) on ImageNet. Small grey images need a larger eps to be hurt, such as 8/255.
"""

import math
import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vars_ode.measuring import evaluation_mode
from vars_ode.robustness._common import check_classes, check_images, check_labels, check_logits
from vars_ode.robustness.randomness import check_indices, image_generator

__all__ = ["fgsm", "pgd"]


def fgsm(model: nn.Module, images: Tensor, labels: Tensor, eps: float = 1 / 255, targeted: bool = False) -> Tensor:
    """The fast gradient sign method (Goodfellow, Shlens and Szegedy 2015, arXiv 1412.6572).

        x' = clip(x + eps sign(grad_x CE(model(x), y)), 0, 1)

    Args:
        model: maps (batch, channels, height, width) in [0, 1] to logits (batch, classes).
        images: (batch, channels, height, width), floating-point in [0, 1]. Not changed.
        labels: (batch,) int64, the true classes; with `targeted` the classes that the model shall be led to.
        eps: radius of the l_inf ball, on the [0, 1] scale.
        targeted: descend towards `labels` instead of ascending away from them.

    Returns:
        Adversarial images of the same shape, dtype and device, in [0, 1] and within eps of the images.

    Raises:
        ValueError: for wrong images or eps, or labels that are not int64 classes of the model.
        RuntimeError: where no gradient reaches the images, or logits or gradient are not finite. A gradient that is
            zero on the whole batch gives a RuntimeWarning: the images come back as they were, which says nothing about
            robustness.
    """
    _check(images, labels, "fgsm", eps=eps)
    with torch.inference_mode(False), evaluation_mode(model):
        clean, labels = images.detach().clone(), labels.clone()
        gradient = _gradient(model, clean, labels, "fgsm")
        _warn_if_zero(gradient, "fgsm")
        return (clean + _direction(targeted) * eps * gradient.sign()).clamp(0, 1)


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
) -> Tensor:
    """Projected gradient descent (Madry et al. 2018, arXiv 1706.06083): FGSM steps, projected back onto the l_inf ball.

        x_{k+1} = clip(x_k + step_size sign(grad_x CE(model(x_k), y)), max(x - eps, 0), min(x + eps, 1))

    Args:
        model: maps (batch, channels, height, width) in [0, 1] to logits (batch, classes).
        images: (batch, channels, height, width), floating-point in [0, 1]. Not changed.
        labels: (batch,) int64, the true classes; with `targeted` the classes that the model shall be led to.
        eps: radius of the l_inf ball, on the [0, 1] scale.
        step_size: of each step, on the [0, 1] scale. With another eps scale it along: step_size = eps / 2.
        num_steps: number of steps. The default's five half steps reach every corner of the ball from any start in it.
        random_start: start at a uniformly random point of the ball, so that a flat spot at the image does not stop the
            attack.
        seed: of the random start. An image's start depends on the seed and the image's index alone: neither on the
            images beside it nor on the device. Under another eps it is the same point of the ball, scaled.
        targeted: descend towards `labels` instead of ascending away from them.
        indices: (batch,) int64, the images' positions in the whole data set; None for 0, 1, ..., batch - 1.

    Returns:
        The last iterate: images of the same shape, dtype and device, in [0, 1] and within eps of the images.

    Raises:
        As `fgsm`, and ValueError for a step size that is not positive, a number of steps below 1, or indices that are
        not one integer of at least 0 per image. The RuntimeWarning of a gradient that is zero on the whole batch is
        given where that is so at the first step.
    """
    _check(images, labels, "pgd", eps=eps, step_size=step_size, num_steps=num_steps)
    places = check_indices(indices, images.shape[0], "pgd")
    with torch.inference_mode(False), evaluation_mode(model):
        clean, labels = images.detach().clone(), labels.clone()
        low, high = (clean - eps).clamp_min(0), (clean + eps).clamp_max(1)
        adversarial = clean
        if random_start:
            adversarial = (clean + eps * _start(clean, seed, places)).clamp(low, high)
        for step in range(num_steps):
            gradient = _gradient(model, adversarial, labels, "pgd")
            if step == 0:
                _warn_if_zero(gradient, "pgd")
            adversarial = (adversarial + _direction(targeted) * step_size * gradient.sign()).clamp(low, high)
        return adversarial


def _start(images: Tensor, seed: int, indices: Sequence[int]) -> Tensor:
    """Uniform in [-1, 1], of the images' shape, each image's from its own generator."""
    if not indices:
        return torch.zeros_like(images)
    draws = [torch.rand(images.shape[1:], generator=image_generator(seed, "pgd", 0, index)) for index in indices]
    return 2 * torch.stack(draws).to(images) - 1


def _check(images: Tensor, labels: Tensor, caller: str, eps: float, step_size: float = 1.0, num_steps: int = 1) -> None:
    check_images(images, caller)
    check_labels(labels, images, caller)
    if not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"{caller} got eps={eps!r}; expected a radius >= 0 on the [0, 1] scale, such as 1/255.")
    if not (math.isfinite(step_size) and step_size > 0):
        raise ValueError(f"{caller} got step_size={step_size!r}; expected a positive length, such as eps / 2.")
    if num_steps != int(num_steps) or num_steps < 1:
        raise ValueError(f"{caller} got num_steps={num_steps!r}; expected an integer of at least 1.")


def _gradient(model: nn.Module, images: Tensor, labels: Tensor, caller: str) -> Tensor:
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
