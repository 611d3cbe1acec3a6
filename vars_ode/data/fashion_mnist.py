"""The embedded data set: 6,000 images of Fashion-MNIST, so that demos and tests run without a download.

Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747) shows articles of clothing as 28 x 28 grey images in ten
classes. The subset holds 5,000 images of its training set and 1,000 of its test set; see ``FASHION_MNIST_LICENSE``
(MIT) beside this file. All 70,000 images are read where Debian's package dataset-fashion-mnist is installed.
"""

from __future__ import annotations

import gzip
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import TensorDataset

import solvers

__all__ = ["EMBEDDED", "FASHION_MNIST_CLASSES", "FULL", "fashion_mnist", "full_fashion_mnist"]

EMBEDDED = "fashion-mnist"
"""The name of this data set where one is asked for by name."""
FULL = "fashion-mnist-full"
"""That of all the images."""

PACKAGE = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package has them."""
_FILES = {"train": "train", "test": "t10k"}

FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
"""The class names, in the order of the labels 0 to 9."""

_SPLITS = ("train", "test")


def fashion_mnist(split: str = "train") -> TensorDataset:
    """The embedded subset of Fashion-MNIST, as tensors in memory.

    Args:
        split: ``"train"`` (N = 5,000) or ``"test"`` (N = 1,000).

    Returns:
        A data set of (image, label): images (N, 1, 28, 28), float32 in [0, 1], 0 being the background; labels (N,),
        int64, indices into `FASHION_MNIST_CLASSES`. The images are not normalised, as attacks and corruptions need the
        [0, 1] scale.

    Raises:
        ValueError: for another split.
    """
    solvers.checks.one_of("split", split, _SPLITS)
    archive = resources.files("vars_ode.data").joinpath("fashion_mnist_6k.npz")
    with archive.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    # A true division, not a product with 1/255, which would put some grey values one rounding off.
    return TensorDataset(torch.from_numpy(images).unsqueeze(1).float() / 255, torch.from_numpy(labels).long())


def full_fashion_mnist(split: str = "train") -> TensorDataset:
    """All of Fashion-MNIST, from the files of Debian's package dataset-fashion-mnist.

    Args:
        split: ``"train"`` (N = 60,000) or ``"test"`` (N = 10,000).

    Returns:
        As `fashion_mnist`.

    Raises:
        ValueError: for another split, where the package is not installed, or where its files are damaged.
    """
    solvers.checks.one_of("split", split, _SPLITS)
    images = _idx(PACKAGE / f"{_FILES[split]}-images-idx3-ubyte.gz", 3)
    labels = _idx(PACKAGE / f"{_FILES[split]}-labels-idx1-ubyte.gz", 1)
    return TensorDataset(torch.from_numpy(images).unsqueeze(1).float() / 255, torch.from_numpy(labels).long())


def _idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """An array of bytes in the IDX format: 0 0 8 dimensions, the sizes as big-endian int32, the values."""
    try:
        content = gzip.decompress(path.read_bytes())
    except FileNotFoundError as error:
        raise ValueError(
            f"there is no {path}; install the system package dataset-fashion-mnist, or take the part that is embedded, "
            f"{EMBEDDED!r}"
        ) from error
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read ({error}); install dataset-fashion-mnist again") from error
    start = 4 + 4 * dimensions
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], ">i4"))
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) != start + int(np.prod(shape)):
        raise ValueError(f"{path} is no file of {dimensions}-dimensional bytes; install dataset-fashion-mnist again")
    return np.frombuffer(content[start:], np.uint8).reshape(shape).copy()
