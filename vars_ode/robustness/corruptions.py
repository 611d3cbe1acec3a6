"""Common image corruptions by name and severity, after ImageNet-C (Hendrycks and Dietterich 2019, arXiv 1903.12261).

    corrupted = corrupt(images, "small_motion_blur", severity=2, seed=0)  # for small images
    corrupted = corrupt(photographs, "motion_blur", severity=5, seed=0)  # ImageNet-C's own, for 224 pixels

Those with the names of ImageNet-C have its definitions and constants, five severities, and lengths in pixels: see
`vars_ode.robustness.corruptions_imagenet_c`, which also tells what differs.

The strengths of those that begin with ``small_`` are chosen for small images such as 28 x 28: severity 1 costs a small
vision transformer a little of its accuracy, severity 3 clearly hurts. Results are not comparable with those published
for ImageNet-C.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from vars_ode.robustness import corruption_functions as functions
from vars_ode.robustness import corruptions_imagenet_c as photos
from vars_ode.robustness import corruptions_weather as weather
from vars_ode.robustness._common import check_images, did_you_mean
from vars_ode.robustness.corruptions_imagenet_c import on_images
from vars_ode.robustness.randomness import check_indices, image_generator

__all__ = [
    "Corruption",
    "accepted_names",
    "available",
    "canonical_name",
    "corrupt",
    "frost_with",
    "register",
    "registered",
    "strengths",
]

CorruptionFunction = Callable[[Tensor, Any, Generator], Tensor]
SMALL, IMAGENET_C = "small", "imagenet-c"
_MADE_FOR = 224  # pixels, of ImageNet-C
_TOO_SMALL = 112


@dataclass(frozen=True)
class Corruption:
    """A function ``(images, strength, generator) -> images`` and its strength at severity 1, 2, ...

    Args:
        function: see `register`.
        strengths: a number or a tuple of them per severity.
        family: "small" or "imagenet-c"; "" for those that were registered.
    """

    function: CorruptionFunction
    strengths: tuple[Any, ...]
    family: str = ""

    def apply(self, images: Tensor, name: str, severity: int, seed: int, places: Sequence[int]) -> Tensor:
        """As `corrupt`, on images and indices that are checked; the noise is keyed by `name`."""
        strength = self.strengths[severity - 1]
        # Image by image, and not only its noise: convolutions and sums over a batch are rounded in another order than
        # those over one image, so that the result would depend on the batch in its last bits.
        with torch.no_grad():
            precise = images.contiguous().to(torch.promote_types(images.dtype, torch.float32)).split(1)
            corrupted = [
                self.function(image, strength, image_generator(seed, name, severity, place))
                for image, place in zip(precise, places, strict=True)
            ]
            _check_shapes(corrupted, images, name)
            return torch.cat(corrupted).clamp(0, 1).to(images.dtype)


_SMALL: dict[str, tuple[CorruptionFunction, tuple[float, ...]]] = {
    # One row per corruption: the strength at severity 1, 2 and 3, and what the number means.
    "small_gaussian_noise": (functions.gaussian_noise, (0.06, 0.12, 0.25)),  # standard deviation
    "small_shot_noise": (functions.shot_noise, (15, 5, 1.5)),  # photons at a white pixel
    "small_impulse_noise": (functions.impulse_noise, (0.02, 0.06, 0.15)),  # fraction of the values
    "small_gaussian_blur": (functions.gaussian_blur, (0.03, 0.05, 0.08)),  # standard deviation / shorter side
    "small_motion_blur": (functions.motion_blur, (0.12, 0.22, 0.35)),  # length of the line / shorter side
    "small_elastic_transform": (functions.elastic_transform, (0.02, 0.04, 0.07)),  # rms shift / shorter side
    # The next three lift a black background, to which a small model trained on black reacts at once. So they are weaker
    # than they would be for photographs.
    "small_fog": (functions.fog, (0.05, 0.1, 0.3)),  # density of the cloud
    "small_brightness": (functions.brightness, (0.03, 0.06, 0.12)),  # added value
    "small_contrast": (functions.contrast, (0.9, 0.78, 0.5)),  # contrast that is kept
    "small_pixelate": (functions.pixelate, (0.05, 0.08, 0.14)),  # side of a square / shorter side
    "small_jpeg_compression": (functions.jpeg_compression, (20, 8, 2)),  # JPEG quality
    "small_occlusion": (functions.occlusion, (0.2, 0.35, 0.5)),  # side of the square / shorter side
    "small_translation": (functions.translation, (0.11, 0.18, 0.25)),  # length of the way / shorter side
}

_IMAGENET_C: dict[str, tuple[CorruptionFunction, tuple[Any, ...]]] = {
    # The constants at severity 1 to 5; what they mean stands at the functions.
    "gaussian_noise": (on_images(photos.gaussian_noise), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": (on_images(photos.shot_noise), (60, 25, 12, 5, 3)),
    "impulse_noise": (on_images(photos.impulse_noise), (0.03, 0.06, 0.09, 0.17, 0.27)),
    "defocus_blur": (on_images(photos.defocus_blur), ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))),
    "glass_blur": (on_images(photos.glass_blur), ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))),
    "motion_blur": (on_images(photos.motion_blur), ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
    "zoom_blur": (
        on_images(photos.zoom_blur),
        tuple(
            tuple(np.arange(1, end, step).tolist())
            for end, step in ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))
        ),
    ),
    "snow": (
        on_images(weather.snow),
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    "frost": (on_images(weather.frost), ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))),
    "fog": (on_images(weather.fog), ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))),
    "brightness": (on_images(photos.brightness), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (on_images(photos.contrast), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "elastic_transform": (
        on_images(photos.elastic_transform),
        # 244, not 224: as published
        tuple(
            tuple(244 * part for part in parts)
            for parts in ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
        ),
    ),
    "pixelate": (on_images(photos.pixelate), (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg_compression": (functions.jpeg_compression, (25, 18, 15, 10, 7)),
}
_CORRUPTIONS: dict[str, Corruption] = {
    name: Corruption(function, strengths, family)
    for family, rows in ((SMALL, _SMALL), (IMAGENET_C, _IMAGENET_C))
    for name, (function, strengths) in rows.items()
}

# The deprecated names, without the prefix, where they are not those of ImageNet-C.
_OLD_NAMES = {name.removeprefix("small_"): name for name in _SMALL if name.removeprefix("small_") not in _IMAGENET_C}


def frost_with(folder: str | os.PathLike[str]) -> Corruption:
    """ImageNet-C's frost with photographs of one's own, for `Corruption.apply` or to `register` under a new name."""
    return Corruption(on_images(weather.frost_from(folder)), _CORRUPTIONS["frost"].strengths, IMAGENET_C)


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


def available(family: str | None = None) -> tuple[str, ...]:
    """The names of the corruptions, in the order in which they were registered.

    Args:
        family: "small" for those of small images, "imagenet-c" for those of ImageNet-C, "" for those that `register`
            added; None for all.
    """
    return tuple(name for name, found in _CORRUPTIONS.items() if family in (None, found.family))


def registered(name: str) -> Corruption:
    """The corruption of a name of `available()`."""
    return _CORRUPTIONS[canonical_name(name)]


def accepted_names() -> dict[str, str]:
    """Every name that `corrupt` accepts, the deprecated ones too, and the one of `available()` that it stands for."""
    return {name: name for name in _CORRUPTIONS} | _OLD_NAMES


def canonical_name(name: str) -> str:
    """The name of `available()` that `name` stands for.

    "gaussian_blur" and "occlusion" without their ``small_`` are accepted with a FutureWarning.

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
        f"the corruption {name!r} is now called {_OLD_NAMES[name]!r}, as its strengths are made for small images. Use "
        "the new name; the old one will be removed.",
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
        severity: 1 (mild) to 3 (severe), to 5 for ImageNet-C's, for a corruption of one's own up to its number of
            strengths.
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
    if corruption.family == IMAGENET_C and min(images.shape[-2:]) < _TOO_SMALL:
        warnings.warn(
            f"{name!r} is ImageNet-C's, made for photographs of {_MADE_FOR} pixels, and these images are "
            f"{images.shape[-2]} x {images.shape[-1]}; for small ones there are {', '.join(available(SMALL))}",
            UserWarning,
            stacklevel=2,
        )
    return corruption.apply(images, name, int(severity), seed, places)


def _check_shapes(corrupted: Sequence[Tensor], images: Tensor, name: str) -> None:
    expected = (1, *images.shape[1:])
    wrong = [tuple(image.shape) for image in corrupted if image.shape != expected]
    if wrong:
        raise ValueError(
            f"the function registered as {name!r} returned shape {wrong[0]} for an image {expected}; it must keep the "
            "shape."
        )
