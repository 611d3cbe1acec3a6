"""Snow, frost and fog of ImageNet-C; see `corruptions_imagenet_c`."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from vars_ode.robustness.corruptions_imagenet_c import Picture, enlarged, trail

_LUMA = (0.299, 0.587, 0.114)
_FROST_COLOUR = (0.90, 0.96, 1.0)


def fog(picture: Picture, constants: tuple[float, float], random: RandomState) -> Picture:
    """A cloud of (density, decay of its roughness), and back to the old maximum."""
    density, decay = constants
    height, width = picture.shape[:2]
    cloud = plasma(1 << (max(height, width) - 1).bit_length(), decay, random)[:height, :width, None]
    peak = picture.max()
    return (picture + density * cloud) * (peak / (peak + density))


def snow(picture: Picture, constants: tuple[float, ...], random: RandomState) -> Picture:
    """Flakes (mean, deviation, zoom, threshold; radius and deviation of their trails) on a picture that is paled."""
    mean, deviation, zoom, threshold, radius, blur, kept = constants
    flakes = enlarged(random.normal(mean, deviation, size=(*picture.shape[:2], 1)), zoom)
    flakes = np.where(flakes < threshold, 0.0, flakes).clip(0, 1)
    flakes = trail(np.floor(255 * flakes) / 255, int(radius), blur, angle=random.uniform(-135, -45))
    pale = np.maximum(picture, 1.5 * _grey(picture) + 0.5)
    return kept * picture + (1 - kept) * pale + flakes + flakes[::-1, ::-1]


def frost(picture: Picture, constants: tuple[float, float], random: RandomState) -> Picture:
    """(part of the picture, part of the frost) with frost that is drawn: a veil and feathers of ice.

    ImageNet-C lays photographs of frozen windows over its pictures, which cannot be had here. So a model's error under
    this frost is not to be compared with published ones; `frost_from` does it with photographs of your own.
    """
    return _frosted(picture, drawn_frost(picture.shape[0], picture.shape[1], random), constants)


def frost_from(folder: str | os.PathLike[str]) -> Callable[[Picture, tuple[float, float], RandomState], Picture]:
    """`frost` as ImageNet-C has it, with the photographs of frost in a folder, of which a random part is laid over.

    Raises:
        ValueError: there are none.
    """
    files = sorted(p for p in Path(folder).glob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not files:
        raise ValueError(f"{folder} holds no photographs of frost (.png, .jpg)")

    def apply(picture: Picture, constants: tuple[float, float], random: RandomState) -> Picture:
        height, width = picture.shape[:2]
        photograph = _photograph(files[random.randint(len(files))], height, width)
        top = random.randint(photograph.shape[0] - height + 1)
        left = random.randint(photograph.shape[1] - width + 1)
        return _frosted(picture, photograph[top : top + height, left : left + width] / 255, constants)

    return apply


def _frosted(picture: Picture, frost_layer: Picture, constants: tuple[float, float]) -> Picture:
    if picture.shape[-1] != 3:
        frost_layer = frost_layer.mean(-1, keepdims=True)
    return constants[0] * picture + constants[1] * frost_layer


@lru_cache(maxsize=8)
def _photograph(path: Path, height: int, width: int) -> NDArray[np.uint8]:
    """A photograph, enlarged where it is smaller than the picture."""
    with Image.open(path) as opened:
        photograph = opened.convert("RGB")
    scale = max(height / photograph.height, width / photograph.width, 1)
    size = (math.ceil(photograph.width * scale), math.ceil(photograph.height * scale))
    return np.asarray(photograph.resize(size) if scale > 1 else photograph)


def drawn_frost(height: int, width: int, random: RandomState) -> Picture:
    """(height, width, 3) in [0, 1], of mean about 0.36: a rough veil, thicker on one side, and feathers on it."""
    side = max(height, width)
    veil = plasma(1 << (side - 1).bit_length(), 1.6, random)[:height, :width]
    canvas = Image.new("L", (2 * width, 2 * height))  # twice the size, so that the needles get soft edges
    pen = ImageDraw.Draw(canvas)
    for _ in range(14):
        _feather(pen, random.uniform(size=2) * canvas.size, random.uniform(0, 2 * math.pi), 0.8 * side, random)
    feathers = np.asarray(canvas.resize((width, height), Image.Resampling.BOX)) / 255
    haze = ndimage.gaussian_filter(feathers, 0.012 * side)
    ice = 0.08 + 0.45 * veil + 0.6 * haze * veil + 0.55 * feathers * (0.4 + 0.6 * veil)
    return ice.clip(0, 1)[..., None] * np.array(_FROST_COLOUR)


def _feather(pen: ImageDraw.ImageDraw, root: Picture, angle: float, length: float, random: RandomState) -> None:
    """A stem with needles at 60 degrees to both sides, shorter towards the tip; stems bend a little."""
    steps = 48
    point = np.array(root)
    for step in range(steps):
        angle += random.normal(scale=0.03)
        following = point + length / steps * np.array([math.cos(angle), math.sin(angle)])
        pen.line([*point, *following], fill=255, width=3)
        needle = 0.28 * length * (1 - step / steps) * random.uniform(0.3, 1)
        for turn in (-math.pi / 3, math.pi / 3):
            tip = point + needle * np.array([math.cos(angle + turn), math.sin(angle + turn)])
            pen.line([*point, *tip], fill=int(random.uniform(110, 230)), width=2)
        point = following


def plasma(side: int, decay: float, random: RandomState) -> Picture:
    """(side, side) in [0, 1], a random fractal by the diamond-square algorithm on a torus; side is a power of two.

    The roughness, 100 squared at the largest scale, is divided by decay squared at each halving.
    """
    field, step, rough = np.zeros((side, side)), side, 100.0

    def midpoints(sums: Picture) -> Picture:
        return sums / 4 + rough * random.uniform(-rough, rough, size=sums.shape)

    while step >= 2:
        half = step // 2
        corners = field[::step, ::step]
        rows = corners + np.roll(corners, -1, axis=0)
        field[half::step, half::step] = midpoints(rows + np.roll(rows, -1, axis=1))
        centres = field[half::step, half::step]
        above = centres + np.roll(centres, 1, axis=0) + corners + np.roll(corners, -1, axis=1)
        field[::step, half::step] = midpoints(above)
        beside = centres + np.roll(centres, 1, axis=1) + corners + np.roll(corners, -1, axis=0)
        field[half::step, ::step] = midpoints(beside)
        step, rough = half, rough / decay
    field -= field.min()
    return field / max(field.max(), np.finfo(float).tiny)


def _grey(picture: Picture) -> Picture:
    """The luma of three channels, the mean of any other number."""
    return (picture @ np.array(_LUMA) if picture.shape[-1] == 3 else picture.mean(-1))[..., None]
