"""Labelled pictures to measure a trained model on: the embedded ones, or a folder of classes."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset, Subset, TensorDataset

import solvers
from vars_ode.data.benchmarks import clean_set
from vars_ode.data.embedded import EMBEDDED_SETS
from vars_ode.data.evaluation_sets import spread
from vars_ode.data.pictures import fitted
from vars_ode.data.preprocessing import Preprocessing


def labelled_pictures(source: str, preprocessing: Preprocessing, count: int | None = None) -> Dataset[Any]:
    """(picture, label) with pictures (channels, height, width) in [0, 1].

    Args:
        source: "fashion-mnist" or "digits" for the embedded test images, or a folder with one subfolder of pictures per
            class, as ImageNet's validation set; where it holds a folder `val`, that one. Classes are numbered in the
            order of their names.
        preprocessing: of the model. The embedded images are stretched to its size; pictures of a folder are resized
            and cropped as it says.
        count: the first so many pictures, of a folder evenly spread ones, as it is in the order of its classes; all by
            default.

    Raises:
        ValueError: no such folder, one without pictures of classes, or a count that is not there.
    """
    if count is not None:
        solvers.checks.positive_int("images", count)
    if source in EMBEDDED_SETS:
        images, labels = EMBEDDED_SETS[source].load("test").tensors
        if count is not None and count > len(images):
            raise ValueError(f"there are {len(images)} embedded test images, got images={count}")
        return TensorDataset(fitted(images[:count], preprocessing.channels, preprocessing.size), labels[:count])
    data = clean_set(source, preprocessing).open()
    return data if count is None else Subset(data, spread(len(data), count))
