"""Common image corruptions by name and severity, after ImageNet-C (Hendrycks and Dietterich 2019, arXiv 1903.12261).

    corrupted = corrupt(images, "motion_blur", severity=2, seed=0)

The strengths are chosen for small images such as 28 x 28: severity 1 costs a small vision transformer a little of its
accuracy, severity 3 clearly hurts. They are not ImageNet-C's own, so results are not comparable with those published
for it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Generator, Tensor

from vars_ode.robustness import corruption_functions as functions
from vars_ode.robustness._common import check_images

__all__ = ["Corruption", "available", "corrupt", "register", "strengths"]

CorruptionFunction = Callable[[Tensor, float, Generator], Tensor]


@dataclass(frozen=True)
class Corruption:
    """A function ``(images, strength, generator) -> images`` and its strength at severity 1, 2, ..."""

    function: CorruptionFunction
    strengths: tuple[float, ...]


_CORRUPTIONS: dict[str, Corruption] = {}


def register(name: str, function: CorruptionFunction, strengths: Sequence[float]) -> None:
    """Adds a corruption, which then is available by its name everywhere, with one severity per strength.

    Args:
        name: a new name.
        function: ``function(images, strength, generator) -> images`` on (batch, channels, height, width) in [0, 1], at
            least float32. It must not change its input in place and must draw from the generator (on the CPU) only.
            `corrupt` clips the result to [0, 1].
        strengths: the strength at severity 1, 2, and so on, from mild to severe. The built-in ones have three.

    Raises:
        ValueError: for a name that is taken, or no strengths.
    """
    if name in (*_CORRUPTIONS, "clean"):
        raise ValueError(f"register got the name {name!r}, which is taken; choose one that is not in {available()}.")
    if len(strengths) == 0:
        raise ValueError(f"register got no strengths for {name!r}; expected one per severity, from mild to severe.")
    _CORRUPTIONS[name] = Corruption(function, tuple(strengths))


# One row per corruption: the strength at severity 1, 2 and 3, and what the number means.
register("gaussian_noise", functions.gaussian_noise, (0.06, 0.12, 0.25))  # standard deviation
register("shot_noise", functions.shot_noise, (15, 5, 1.5))  # photons at a white pixel
register("impulse_noise", functions.impulse_noise, (0.02, 0.06, 0.15))  # fraction of the values
register("gaussian_blur", functions.gaussian_blur, (0.03, 0.05, 0.08))  # standard deviation / shorter side
register("motion_blur", functions.motion_blur, (0.12, 0.22, 0.35))  # length of the line / shorter side
register("elastic_transform", functions.elastic_transform, (0.02, 0.04, 0.07))  # rms displacement / shorter side
# The next three lift a black background, to which a small model trained on black reacts at once. So they are weaker
# than they would be for photographs.
register("fog", functions.fog, (0.05, 0.1, 0.3))  # density of the cloud
register("brightness", functions.brightness, (0.03, 0.06, 0.12))  # added value
register("contrast", functions.contrast, (0.9, 0.78, 0.5))  # contrast that is kept
register("pixelate", functions.pixelate, (0.05, 0.08, 0.14))  # side of a square / shorter side
register("jpeg_compression", functions.jpeg_compression, (20, 8, 2))  # JPEG quality
register("occlusion", functions.occlusion, (0.2, 0.35, 0.5))  # side of the square / shorter side


def available() -> tuple[str, ...]:
    """The names `corrupt` accepts, in the order in which they were registered."""
    return tuple(_CORRUPTIONS)


def strengths(name: str) -> tuple[float, ...]:
    """The strengths of a corruption at severity 1, 2, and so on; for their unit see the corruption's function."""
    return _find(name).strengths


@torch.no_grad()
def corrupt(images: Tensor, name: str, severity: int = 1, seed: int = 0) -> Tensor:
    """Corrupts a batch of images.

    Args:
        images: (batch, channels, height, width), floating-point in [0, 1], of any size. Not changed.
        name: one of `available()`.
        severity: 1 (mild) to 3 (severe), for a corruption of one's own up to its number of strengths.
        seed: of the noise, so that the same call gives the same images, on any device. The generator is the call's own:
            the global random state is neither read nor advanced. An image's noise depends on its place in the batch.

    Returns:
        Images of the same shape, dtype and device, clipped to [0, 1], without gradient.

    Raises:
        ValueError: for an unknown name or severity, or images of another rank, dtype or range, or with NaN.
    """
    corruption = _find(name)
    count = len(corruption.strengths)
    if not isinstance(severity, Integral) or isinstance(severity, bool) or severity not in range(1, count + 1):
        raise ValueError(
            f"corrupt got severity={severity!r} for {name!r}; expected an integer from 1 (mild) to {count} (severe)."
        )
    check_images(images, "corrupt")
    if images.shape[0] == 0:
        return images.clone()
    precise = images.contiguous().to(torch.promote_types(images.dtype, torch.float32))
    generator = torch.Generator().manual_seed(seed)
    corrupted = corruption.function(precise, corruption.strengths[severity - 1], generator)
    if corrupted.shape != images.shape:
        raise ValueError(
            f"the function registered as {name!r} returned shape {tuple(corrupted.shape)} for images "
            f"{tuple(images.shape)}; it must keep the shape."
        )
    return corrupted.clamp(0, 1).to(images.dtype)


def _find(name: str) -> Corruption:
    if name not in _CORRUPTIONS:
        raise ValueError(
            f"unknown corruption {name!r}; expected one of {', '.join(available())}, or add it with register()."
        )
    return _CORRUPTIONS[name]
