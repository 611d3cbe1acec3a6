"""The embedded data set: 6,000 images of Fashion-MNIST, so that demos and tests run without a download.

Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747) shows articles of clothing as 28 x 28 grey images in ten
classes. The subset holds 5,000 images of its training set and 1,000 of its test set; see ``FASHION_MNIST_LICENSE``
(MIT) beside this file.
"""

from importlib import resources

import numpy as np
import torch
from torch.utils.data import TensorDataset

import solvers

__all__ = ["EMBEDDED", "FASHION_MNIST_CLASSES", "fashion_mnist"]

EMBEDDED = "fashion-mnist"
"""The name of this data set where one is asked for by name."""

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
