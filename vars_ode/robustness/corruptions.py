"""Common image corruptions by name and severity, after ImageNet-C (Hendrycks and Dietterich 2019, arXiv 1903.12261).

    corrupted = corrupt(images, "small_motion_blur", severity=2, seed=0)

The strengths are chosen for small images such as 28 x 28: severity 1 costs a small vision transformer a little of its
accuracy, severity 3 clearly hurts. They are not ImageNet-C's own, so results are not comparable with those published
for it, and the names begin with ``small_`` so that nobody does compare them.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Generator, Tensor

from vars_ode.robustness import corruption_functions as functions
from vars_ode.robustness._common import check_images, did_you_mean
from vars_ode.robustness.randomness import check_indices, image_generator

__all__ = ["Corruption", "accepted_names", "available", "canonical_name", "corrupt", "register", "strengths"]

CorruptionFunction = Callable[[Tensor, float, Generator], Tensor]


@dataclass(frozen=True)
class Corruption:
    """A function ``(images, strength, generator) -> images`` and its strength at severity 1, 2, ..."""

    function: CorruptionFunction
    strengths: tuple[float, ...]


_CORRUPTIONS: dict[str, Corruption] = {
    # One row per corruption: the strength at severity 1, 2 and 3, and what the number means.
    "small_gaussian_noise": Corruption(functions.gaussian_noise, (0.06, 0.12, 0.25)),  # standard deviation
    "small_shot_noise": Corruption(functions.shot_noise, (15, 5, 1.5)),  # photons at a white pixel
    "small_impulse_noise": Corruption(functions.impulse_noise, (0.02, 0.06, 0.15)),  # fraction of the values
    "small_gaussian_blur": Corruption(functions.gaussian_blur, (0.03, 0.05, 0.08)),  # standard deviation / shorter side
    "small_motion_blur": Corruption(functions.motion_blur, (0.12, 0.22, 0.35)),  # length of the line / shorter side
    "small_elastic_transform": Corruption(functions.elastic_transform, (0.02, 0.04, 0.07)),  # rms shift / shorter side
    # The next three lift a black background, to which a small model trained on black reacts at once. So they are weaker
    # than they would be for photographs.
    "small_fog": Corruption(functions.fog, (0.05, 0.1, 0.3)),  # density of the cloud
    "small_brightness": Corruption(functions.brightness, (0.03, 0.06, 0.12)),  # added value
    "small_contrast": Corruption(functions.contrast, (0.9, 0.78, 0.5)),  # contrast that is kept
    "small_pixelate": Corruption(functions.pixelate, (0.05, 0.08, 0.14)),  # side of a square / shorter side
    "small_jpeg_compression": Corruption(functions.jpeg_compression, (20, 8, 2)),  # JPEG quality
    "small_occlusion": Corruption(functions.occlusion, (0.2, 0.35, 0.5)),  # side of the square / shorter side
}

# The deprecated names, without the prefix: those of ImageNet-C.
_OLD_NAMES = {name.removeprefix("small_"): name for name in _CORRUPTIONS}


def register(name: str, function: CorruptionFunction, strengths: Sequence[float]) -> None:
    """Adds a corruption, which then is available by its name everywhere, with one severity per strength.

    Args:
        name: a new name.
        function: ``function(images, strength, generator) -> images`` on (batch, channels, height, width) in [0, 1], at
            least float32. `corrupt` calls it with one image at a time, batch = 1, and a generator of this image's own.
            It must not change its input in place and must draw from the generator (on the CPU) only. `corrupt` clips
            the result to [0, 1].
        strengths: the strength at severity 1, 2, and so on, from mild to severe. The built-in ones have three.

    Raises:
        ValueError: for a name that is taken, or no strengths.
    """
    if name in (*accepted_names(), "clean"):
        raise ValueError(
            f"register got the name {name!r}, which is taken; choose another than 'clean' and "
            f"{', '.join(available())}, with or without the prefix small_."
        )
    if len(strengths) == 0:
        raise ValueError(f"register got no strengths for {name!r}; expected one per severity, from mild to severe.")
    _CORRUPTIONS[name] = Corruption(function, tuple(strengths))


def available() -> tuple[str, ...]:
    """The names of the corruptions, in the order in which they were registered."""
    return tuple(_CORRUPTIONS)


def accepted_names() -> dict[str, str]:
    """Every name that `corrupt` accepts, the deprecated ones too, and the one of `available()` that it stands for."""
    return {name: name for name in _CORRUPTIONS} | _OLD_NAMES


def canonical_name(name: str) -> str:
    """The name of `available()` that `name` stands for.

    The built-in corruptions without their ``small_``, such as "fog", are accepted with a FutureWarning.

    Raises:
        ValueError: for an unknown name.
    """
    if name in _CORRUPTIONS:
        return name
    if name not in _OLD_NAMES:
        raise ValueError(
            f"unknown corruption {name!r}; expected one of {', '.join(available())}, or add it with register()."
            f"{did_you_mean(name, accepted_names())}"
        )
    warnings.warn(
        f"the corruption {name!r} is now called {_OLD_NAMES[name]!r}: its strengths are made for small images, and "
        "those of ImageNet-C, which uses such bare names, are others. Use the new name; the old one will be removed.",
        FutureWarning,
        stacklevel=3,
    )
    return _OLD_NAMES[name]


def strengths(name: str) -> tuple[float, ...]:
    """The strengths of a corruption at severity 1, 2, and so on; for their unit see the corruption's function."""
    return _CORRUPTIONS[canonical_name(name)].strengths


def corrupt(
    images: Tensor, name: str, severity: int = 1, seed: int = 0, indices: Tensor | Sequence[int] | None = None
) -> Tensor:
    """Corrupts a batch of images.

    Args:
        images: (batch, channels, height, width), floating-point in [0, 1], of any size. Not changed.
        name: one of `available()`.
        severity: 1 (mild) to 3 (severe), for a corruption of one's own up to its number of strengths.
        seed: of the noise. An image's noise depends on seed, name, severity and the image's index alone: neither on
            the images beside it nor on the device. The global random state is neither read nor advanced.
        indices: (batch,) int64, the images' positions in the whole data set; None for 0, 1, ..., batch - 1.

    Returns:
        Images of the same shape, dtype and device, clipped to [0, 1], without gradient.

    Raises:
        ValueError: for an unknown name or severity; images of another rank, dtype or range, or with NaN; or indices
            that are not one integer of at least 0 per image.
    """
    name = canonical_name(name)
    corruption = _CORRUPTIONS[name]
    count = len(corruption.strengths)
    if not isinstance(severity, Integral) or isinstance(severity, bool) or severity not in range(1, count + 1):
        raise ValueError(
            f"corrupt got severity={severity!r} for {name!r}; expected an integer from 1 (mild) to {count} (severe)."
        )
    check_images(images, "corrupt")
    places = check_indices(indices, images.shape[0], "corrupt")
    if images.shape[0] == 0:
        return images.detach().clone()
    strength = corruption.strengths[severity - 1]
    # Image by image, and not only its noise: convolutions and sums over a batch are rounded in another order than
    # those over one image, so that the result would depend on the batch in its last bits.
    with torch.no_grad():
        precise = images.contiguous().to(torch.promote_types(images.dtype, torch.float32)).split(1)
        corrupted = [
            corruption.function(image, strength, image_generator(seed, name, int(severity), place))
            for image, place in zip(precise, places, strict=True)
        ]
        _check_shapes(corrupted, images, name)
        return torch.cat(corrupted).clamp(0, 1).to(images.dtype)


def _check_shapes(corrupted: Sequence[Tensor], images: Tensor, name: str) -> None:
    expected = (1, *images.shape[1:])
    wrong = [tuple(image.shape) for image in corrupted if image.shape != expected]
    if wrong:
        raise ValueError(
            f"the function registered as {name!r} returned shape {wrong[0]} for an image {expected}; it must keep the "
            "shape."
        )
