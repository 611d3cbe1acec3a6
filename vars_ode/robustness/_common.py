"""What corruptions, attacks and evaluation share: the checks at the boundary and the evaluation mode."""

import math
from collections.abc import Mapping
from difflib import get_close_matches
from numbers import Real

import torch
from torch import Tensor


def check_images(images: Tensor, caller: str) -> None:
    """Refuses anything but finite floating-point images (batch, channels, height, width) in [0, 1]: ValueError."""
    if not isinstance(images, Tensor):
        raise ValueError(
            f"{caller} got images of type {type(images).__name__}; expected a torch.Tensor. Convert them first."
        )
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(
            f"{caller} got images of shape {tuple(images.shape)}; expected (batch, channels, height, width). "
            "A single image needs images.unsqueeze(0)."
        )
    if not images.is_floating_point():
        raise ValueError(
            f"{caller} got images of dtype {images.dtype}; expected floating-point values in [0, 1]. "
            "Divide 8-bit images by 255: images.float() / 255."
        )
    if images.numel() == 0:
        return
    low, high = (float(bound) for bound in torch.aminmax(images.detach()))  # NaN anywhere makes both NaN
    if low != low:
        raise ValueError(
            f"{caller} got images that hold NaN; expected values in [0, 1]. Look at the step that loads them."
        )
    if low < 0 or high > 1:
        raise ValueError(
            f"{caller} got images with values from {low:.4g} to {high:.4g}; expected [0, 1]. Undo the normalisation "
            "and move it into the model: torch.nn.Sequential(torchvision.transforms.v2.Normalize(mean, std), model)."
        )


def check_labels(labels: Tensor, images: Tensor, caller: str) -> None:
    """Refuses anything but integer class indices (batch,), with a ValueError."""
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        came = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(
            f"{caller} got labels {came} for {images.shape[0]} images; expected class indices, torch.int64 "
            f"({images.shape[0]},)."
        )


def check_logits(logits: Tensor, images: Tensor, caller: str) -> None:
    """Refuses a model's output that is not (batch, classes) or not finite, with a RuntimeError."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != images.shape[0]:
        came = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"type {type(logits).__name__}"
        raise RuntimeError(
            f"{caller}: the model returned an output of {came} for {images.shape[0]} images; expected logits of shape "
            f"({images.shape[0]}, classes). Wrap the model so that it returns only these."
        )
    bad = ~logits.detach().isfinite().all(dim=1)
    if bad.any():
        what = "NaN" if logits.detach().isnan().any() else "infinite"
        raise RuntimeError(
            f"{caller}: the model returned {what} logits for {int(bad.sum())} of {images.shape[0]} images, so an "
            "accuracy would mean nothing. If its attention is solved by an ODE solver, look at the solver's status; "
            "otherwise try float32."
        )


def check_classes(labels: Tensor, logits: Tensor, caller: str) -> None:
    """Refuses labels that are not among the classes of the logits (batch, classes), with a ValueError."""
    classes = logits.shape[1]
    bad = (labels < 0) | (labels >= classes)
    if bad.any():
        raise ValueError(
            f"{caller} got the label {int(labels[bad][0])} ({int(bad.sum())} of {labels.shape[0]} are out of range) "
            f"for a model with {classes} classes; expected 0 to {classes - 1}. Leave out images without a class, and "
            "check that data set and model have the same classes."
        )


def did_you_mean(name: object, names: Mapping[str, str]) -> str:
    """The end of an error message that suggests what the nearest of the `names` stands for; empty if none is near."""
    nearest = get_close_matches(str(name), names, n=1)
    return f" Did you mean {names[nearest[0]]!r}?" if nearest else ""


def check_attack(caller: str, eps: float, step_size: float = 1.0, **counts: float) -> None:
    """Refuses a radius, a step size or numbers of steps that are none, with a ValueError."""
    if not (_is_finite(eps) and eps >= 0):
        raise ValueError(f"{caller} got eps={eps!r}; expected a radius >= 0 on the [0, 1] scale, such as 1/255.")
    if not (_is_finite(step_size) and step_size > 0):
        raise ValueError(f"{caller} got step_size={step_size!r}; expected a positive length, such as eps / 2.")
    for name, count in counts.items():
        if not _is_finite(count) or count != int(count) or count < 1:
            raise ValueError(f"{caller} got {name}={count!r}; expected an integer of at least 1.")


def _is_finite(value: object) -> bool:
    """Whether it is one number, and neither infinite nor NaN."""
    is_number = isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1)
    return is_number and math.isfinite(value)  # type: ignore[arg-type]
