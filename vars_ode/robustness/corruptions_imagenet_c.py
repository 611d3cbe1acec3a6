"""The corruptions of ImageNet-C, for photographs of 224 pixels: definitions and constants of the benchmark's makers.

Hendrycks and Dietterich, *Benchmarking Neural Network Robustness to Common Corruptions and Perturbations*, ICLR 2019,
arXiv 1903.12261, with the constants of the published generator. Each function takes a picture (height, width,
channels), float64 in [0, 1] with 8-bit values, the constants of one severity and a random state, and returns a picture,
which is clipped and cut down to 8 bits, as the generator does. Lengths are in pixels. Weather has a file of its own.

What differs from the published pictures, apart from the random numbers: they were saved as JPEG of quality 85
afterwards, and these are not; the affine part of `elastic_transform` interpolates in float64 and not in steps of 1/32
pixel; `frost` is drawn, where no photographs are given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.random import RandomState
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.signal import fftconvolve
from torch import Generator, Tensor

Picture = NDArray[np.float64]
PictureFunction = Callable[[Picture, Any, RandomState], Picture]


def on_images(function: PictureFunction) -> Callable[[Tensor, Any, Generator], Tensor]:
    """A function of pictures as one of images (batch, channels, height, width), with noise from a torch generator."""

    def apply(images: Tensor, constants: Any, generator: Generator) -> Tensor:
        pixels = images.mul(255).round().clamp(0, 255).cpu().double().permute(0, 2, 3, 1).numpy() / 255
        seeds = torch.randint(2**32, (len(pixels), 4), generator=generator).tolist()
        made = []
        for picture, seed in zip(pixels, seeds, strict=True):
            # RandomState, whose numbers no later NumPy may change
            made.append(np.floor(255 * function(picture, constants, RandomState(seed)).clip(0, 1) + 1e-9) / 255)
        return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).to(images)

    return apply


def gaussian_noise(picture: Picture, deviation: float, random: RandomState) -> Picture:
    return picture + random.normal(scale=deviation, size=picture.shape)


def shot_noise(picture: Picture, photons: float, random: RandomState) -> Picture:
    return random.poisson(picture * photons) / photons


def impulse_noise(picture: Picture, fraction: float, random: RandomState) -> Picture:
    """Salt and pepper in equal parts, in each channel by itself."""
    draw = random.uniform(size=picture.shape)
    return np.where(draw < fraction / 2, 0.0, np.where(draw < fraction, 1.0, picture))


def defocus_blur(picture: Picture, constants: tuple[int, float], random: RandomState) -> Picture:
    """Convolution with a disk of (radius, deviation of the Gaussian that softens its rim).

    The Gaussian mirrors a disk that fills its square, so that the weights sum to 1.01 at the last two severities.
    """
    kernel = _disk(*constants)
    radius = len(kernel) // 2
    padded = _padded(picture, radius, "reflect")
    return np.stack([fftconvolve(channel, kernel, "valid") for channel in np.moveaxis(padded, -1, 0)], axis=-1)


def glass_blur(picture: Picture, constants: tuple[float, int, int], random: RandomState) -> Picture:
    """Blur, pixels taken from random neighbours at most so far away, blur again: (deviation, distance, rounds).

    The generator means to exchange two pixels; as its arrays are views, the second keeps its colour. So it is here.
    """
    deviation, distance, rounds = constants
    blurred = np.floor(255 * _gaussian(picture, deviation)) / 255
    height, width = picture.shape[:2]
    sources = np.arange(height * width).tolist()
    rows = np.arange(height - distance, distance, -1)
    columns = np.arange(width - distance, distance, -1)
    places = (rows[:, None] * width + columns).ravel()
    for _ in range(rounds):
        offsets = random.randint(-distance, distance, size=(len(places), 2))
        neighbours = places + offsets[:, 1] * width + offsets[:, 0]
        for place, neighbour in zip(places.tolist(), neighbours.tolist(), strict=True):
            sources[place] = sources[neighbour]
    return _gaussian(blurred.reshape(height * width, -1)[sources].reshape(picture.shape), deviation)


def motion_blur(picture: Picture, constants: tuple[int, float], random: RandomState) -> Picture:
    """A trail of (radius, deviation) in a random direction within 45 degrees of the horizontal."""
    return trail(picture, *constants, angle=random.uniform(-45, 45))


def zoom_blur(picture: Picture, zooms: Sequence[float], random: RandomState) -> Picture:
    """The mean of the picture and of enlarged ones."""
    return (picture + sum(enlarged(picture, zoom) for zoom in zooms)) / (len(zooms) + 1)


def brightness(picture: Picture, shift: float, random: RandomState) -> Picture:
    """Adds to V of HSV, with hue and saturation as they are: channels keep their ratios, and black becomes grey."""
    value = picture.max(-1, keepdims=True)
    raised = (value + shift).clip(0, 1)
    return np.where(value > 0, picture * raised / np.where(value > 0, value, 1), raised)


def contrast(picture: Picture, factor: float, random: RandomState) -> Picture:
    mean = picture.mean((0, 1), keepdims=True)
    return (picture - mean) * factor + mean


def elastic_transform(picture: Picture, constants: tuple[float, float, float], random: RandomState) -> Picture:
    """An affine map that moves three points by up to the last number, then a smooth displacement (alpha, deviation)."""
    alpha, deviation, affine = constants
    height, width = picture.shape[:2]
    centre, third = np.array([height // 2, width // 2], dtype=float), min(height, width) // 3
    points = np.stack([centre + third, [centre[0] + third, centre[1] - third], centre - third])
    moved = points + random.uniform(-affine, affine, size=points.shape)
    # where each pixel (x, y) comes from: the inverse of the map that takes the points to the moved ones
    back = np.linalg.solve(np.column_stack([moved, np.ones(3)]), points)
    y, x = np.meshgrid(np.arange(0.0, height), np.arange(0.0, width), indexing="ij")
    source = np.stack([x, y, np.ones_like(x)], axis=-1) @ back
    picture = _sampled(picture, source[..., 1], source[..., 0], "mirror")
    across, down = (
        alpha * ndimage.gaussian_filter(random.uniform(-1, 1, size=(height, width)), deviation, truncate=3)
        for _ in range(2)
    )
    return _sampled(picture, y + down, x + across, "reflect")


def pixelate(picture: Picture, factor: float, random: RandomState) -> Picture:
    height, width = picture.shape[:2]
    small = (max(1, int(width * factor)), max(1, int(height * factor)))
    channels = np.moveaxis(np.round(255 * picture).astype(np.uint8), -1, 0)
    box = Image.Resampling.BOX
    made = [Image.fromarray(channel).resize(small, box).resize((width, height), box) for channel in channels]
    return np.stack([np.asarray(channel) for channel in made], axis=-1) / 255


def enlarged(picture: Picture, zoom: float) -> Picture:
    """The middle of a picture, enlarged to the picture's size."""
    size = picture.shape[:2]
    inner = [math.ceil(side / zoom) for side in size]
    top, left = ((side - part) // 2 for side, part in zip(size, inner, strict=True))
    middle = ndimage.zoom(picture[top : top + inner[0], left : left + inner[1]], (zoom, zoom, 1), order=1)
    top, left = ((have - side) // 2 for have, side in zip(middle.shape, size, strict=False))
    return middle[top : top + size[0], left : left + size[1]]


def trail(picture: Picture, radius: int, deviation: float, angle: float) -> Picture:
    """ImageMagick's motion blur: the mean over 2 radius + 1 pixels, from each one on in the direction of `angle`.

    The weights are one side of a Gaussian; a picture is continued by its outermost pixels. The angle is in degrees.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-0.5 * (steps / deviation) ** 2)
    weights /= weights.sum()
    right, down = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    reach = len(steps)
    padded = _padded(picture, reach, "edge")
    height, width = picture.shape[:2]
    blurred = np.zeros_like(picture)
    for step, weight in zip(steps, weights, strict=True):
        row = reach + math.ceil(step * down - 0.5)
        column = reach + math.ceil(step * right - 0.5)
        blurred += weight * padded[row : row + height, column : column + width]
    return blurred


@lru_cache(maxsize=8)
def _disk(radius: int, deviation: float) -> Picture:
    extent = max(8, radius)
    offset = np.arange(-extent, extent + 1)
    disk = (offset[:, None] ** 2 + offset**2 <= radius**2).astype(float)
    reach = 1 if radius <= 8 else 2
    return ndimage.gaussian_filter(disk / disk.sum(), deviation, mode="mirror", radius=reach)


def _gaussian(picture: Picture, deviation: float) -> Picture:
    return ndimage.gaussian_filter(picture, (deviation, deviation, 0), mode="nearest", truncate=4)


def _padded(picture: Picture, by: int, mode: Any) -> Picture:
    return np.pad(picture, ((by, by), (by, by), (0, 0)), mode=mode)


def _sampled(picture: Picture, rows: Picture, columns: Picture, mode: str) -> Picture:
    channels = [
        ndimage.map_coordinates(channel, (rows, columns), order=1, mode=mode) for channel in np.moveaxis(picture, -1, 0)
    ]
    return np.stack(channels, axis=-1)
