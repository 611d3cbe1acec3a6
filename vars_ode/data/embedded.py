"""Data sets that fit into memory and need no download, by name: embedded ones, and those of installed packages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch.utils.data import TensorDataset

import solvers
from vars_ode.data.digits import DIGITS, digits
from vars_ode.data.fashion_mnist import EMBEDDED, FASHION_MNIST_CLASSES, FULL, fashion_mnist, full_fashion_mnist

__all__ = ["EMBEDDED_SETS", "EmbeddedSet", "embedded_set"]


@dataclass(frozen=True)
class EmbeddedSet:
    """A data set in memory.

    Args:
        load: "train" or "test" -> (images, labels), images (N, 1, height, width) in [0, 1].
        classes: their names, in the order of the labels.
        mirrors: whether a mirrored image is one of the same class.
    """

    load: Callable[[str], TensorDataset]
    classes: tuple[str, ...]
    mirrors: bool


EMBEDDED_SETS = {
    EMBEDDED: EmbeddedSet(fashion_mnist, FASHION_MNIST_CLASSES, mirrors=True),
    FULL: EmbeddedSet(full_fashion_mnist, FASHION_MNIST_CLASSES, mirrors=True),
    DIGITS: EmbeddedSet(digits, tuple("0123456789"), mirrors=False),
}
"""Name -> data set: a new one enters by a line."""


def embedded_set(name: str) -> EmbeddedSet:
    """By name; a ValueError that lists them for an unknown one."""
    solvers.checks.one_of("data", name, tuple(EMBEDDED_SETS))
    return EMBEDDED_SETS[name]
