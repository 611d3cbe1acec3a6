"""Pictures as input of a model: from a file, or embedded ones of different classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

import solvers
from vars_ode.data.fashion_mnist import fashion_mnist


def pictures_for(image: Path | None, count: int, channels: int, size: tuple[int, int]) -> Tensor:
    """(pictures, channels, *size) in [0, 1]: one file, or the first embedded test images of different classes.

    Args:
        image: a picture; None for embedded ones.
        count: how many of the embedded ones.
        channels: 1 or 3.
        size: height and width in pixels.

    Raises:
        ValueError: a file that is no picture, or channels that pictures do not have.
    """
    return fitted(_opened(image, channels) if image is not None else _embedded(count), channels, size)


def fitted(pictures: Tensor, channels: int, size: tuple[int, int]) -> Tensor:
    """Pictures (batch, 1 or 3, height, width) in [0, 1], resized, and with as many channels as a model takes."""
    if pictures.shape[-2:] != size:
        pictures = F.interpolate(pictures, size, mode="bilinear", antialias=True, align_corners=False)
    if pictures.shape[1] != channels:
        if channels not in (1, 3):
            raise ValueError(f"the model takes {channels} channels, and pictures have 1 or 3")
        pictures = pictures.expand(-1, channels, -1, -1) if channels == 3 else pictures.mean(1, keepdim=True)
    return pictures.clamp(0, 1)


def _embedded(count: int) -> Tensor:
    images, labels = fashion_mnist("test").tensors
    solvers.checks.positive_int("images", count)
    if count > len(images):
        raise ValueError(f"there are {len(images)} embedded test images, got images={count}")
    first = [int((labels == label).nonzero()[0, 0]) for label in labels.unique().tolist()]
    order = sorted(first) + [i for i in range(len(labels)) if i not in first]
    return images[order[:count]]


def _opened(path: Path, channels: int) -> Tensor:
    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened).convert("L" if channels == 1 else "RGB")
    except FileNotFoundError as error:
        raise ValueError(f"there is no image {path}") from error
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is no picture that can be read ({error})") from error
    picture = ImageOps.fit(picture, (min(picture.size),) * 2)  # the square in the middle
    values = torch.from_numpy(np.array(picture)).float() / 255
    return values.view(1, *values.shape[:2], -1).permute(0, 3, 1, 2)
