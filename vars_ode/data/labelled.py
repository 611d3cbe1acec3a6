"""Labelled pictures to measure a trained model on: the embedded ones, or a folder of classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.utils.data import Dataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder

import solvers
from vars_ode.data.fashion_mnist import fashion_mnist
from vars_ode.data.pictures import fitted
from vars_ode.data.preprocessing import Preprocessing

EMBEDDED = "fashion-mnist"


def labelled_pictures(source: str, preprocessing: Preprocessing, count: int | None = None) -> Dataset[Any]:
    """(picture, label) with pictures (channels, height, width) in [0, 1].

    Args:
        source: "fashion-mnist" for the embedded test images, or a folder with one subfolder of pictures per class, as
            ImageNet's validation set; where it holds a folder `val`, that one. Classes are numbered in the order of
            their names.
        preprocessing: of the model. The embedded images are stretched to its size; pictures of a folder are resized
            and cropped as it says.
        count: the first so many pictures, of a folder evenly spread ones, as it is in the order of its classes; all by
            default.

    Raises:
        ValueError: no such folder, one without pictures of classes, or a count that is not there.
    """
    if count is not None:
        solvers.checks.positive_int("images", count)
    if source == EMBEDDED:
        images, labels = fashion_mnist("test").tensors
        if count is not None and count > len(images):
            raise ValueError(f"there are {len(images)} embedded test images, got images={count}")
        return TensorDataset(fitted(images[:count], preprocessing.channels, preprocessing.size), labels[:count])
    data = _folder(Path(source), preprocessing)
    if count is None:
        return data
    if count > len(data):
        raise ValueError(f"{source} holds {len(data)} images, got images={count}")
    return Subset(data, [i * len(data) // count for i in range(count)])


def _folder(path: Path, preprocessing: Preprocessing) -> ImageFolder:
    if not path.is_dir():
        raise ValueError(f"there is no folder {path}; give {EMBEDDED!r} or a folder with one subfolder per class")
    try:
        val = path / "val"
        return ImageFolder(str(val if val.is_dir() else path), preprocessing.transform())
    except FileNotFoundError as error:
        raise ValueError(f"{path} has no subfolders of pictures, one per class: {error}") from error
