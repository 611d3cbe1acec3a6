"""Handwritten digits of scikit-learn, a second small data set from another source than Fashion-MNIST.

They are the test images of Alpaydin and Kaynak's *Optical Recognition of Handwritten Digits* (UCI Machine Learning
Repository, 1998): 1,797 pictures of 8 x 8 pixels with 17 grey values, by 13 writers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

import solvers

__all__ = ["DIGITS", "digits"]

DIGITS = "digits"
"""The name of this data set where one is asked for by name."""

SIDE = 16
_TRAINING = 1297


def digits(split: str = "train") -> TensorDataset:
    """scikit-learn's digits, stretched to 16 x 16.

    The pictures come in the order of the writers, and stay in it: those of the test are the last, mostly by writers of
    whom none is in the training set.

    Args:
        split: ``"train"`` (N = 1,297) or ``"test"`` (N = 500).

    Returns:
        A data set of (image, label): images (N, 1, 16, 16), float32 in [0, 1], 0 being the background; labels (N,),
        int64, the digit.

    Raises:
        ValueError: for another split, or without scikit-learn, in whose package the pictures are.
    """
    solvers.checks.one_of("split", split, ("train", "test"))
    try:
        from sklearn.datasets import load_digits  # read from its package, not fetched
    except ImportError as error:
        raise ValueError("the digits are in scikit-learn's package; pip install scikit-learn") from error
    found = load_digits()
    images = torch.from_numpy(found.images).float().unsqueeze(1) / 16
    images = F.interpolate(images, (SIDE, SIDE), mode="bilinear", align_corners=False).clamp(0, 1)
    labels = torch.from_numpy(found.target).long()
    chosen = slice(None, _TRAINING) if split == "train" else slice(_TRAINING, None)
    return TensorDataset(images[chosen], labels[chosen])
