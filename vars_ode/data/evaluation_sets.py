"""Pictures that a model is evaluated on: by the index of each in the whole set, from files or arrays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

import solvers
from vars_ode.data.embedded import EmbeddedSet
from vars_ode.data.pictures import fitted
from vars_ode.data.preprocessing import Preprocessing
from vars_ode.data.trees import Labelled, files_of

__all__ = ["EvaluationSet", "Pictures", "UnreadablePicture"]

_DAMAGED = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # PIL has no kind of its own for all


class UnreadablePicture(ValueError):
    """A file that is no picture; the message names it."""


@contextmanager
def readable(name: object) -> Iterator[None]:
    """What is raised inside because a file is damaged becomes an `UnreadablePicture` with its name.

    Errors of the system, such as a disk that is gone, are no fault of the file and stay as they are.
    """
    try:
        yield
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UnreadablePicture(f"{name} is no picture that can be read ({error})") from error


class Pictures(Dataset[tuple[Tensor, int]], ABC):
    """Labelled pictures in a fixed order."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        """(channels, height, width) in [0, 1], and its label. UnreadablePicture where the file is damaged."""


@dataclass(frozen=True)
class EvaluationSet:
    """One condition of a benchmark.

    Args:
        benchmark: the name of the source, such as "imagenet-c".
        condition: "clean", a corruption's name, or the benchmark's own name where it has but one condition.
        severity: from 1 for corruptions; 0 otherwise.
        open: lists the pictures, which takes a while for large folders.
        classes: the model's outputs that are compared, of which the labels are; None for all of them.
        source: where the pictures are from, for the record.
    """

    benchmark: str
    condition: str
    severity: int
    open: Callable[[], Pictures]
    classes: tuple[int, ...] | None = None
    source: str = ""


class FilePictures(Pictures):
    """Pictures in files."""

    def __init__(self, classes: Sequence[Labelled], preprocessing: Preprocessing) -> None:
        self.files, self._transform = files_of(classes), preprocessing.transform()
        if not self.files:
            raise ValueError(f"{classes[0].folder.parent if classes else 'the folder'} holds no pictures")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        path, label = self.files[position]
        with readable(path), Image.open(path) as picture:
            return self._transform(picture), label


class ArrayPictures(Pictures):
    """Pictures in a .npy file (pictures, height, width, 3), uint8, of which only what is asked for is read."""

    def __init__(self, path: Path, labels: NDArray[np.int64], start: int, preprocessing: Preprocessing) -> None:
        self.path, self.labels, self._start = path, labels, start
        self._transform = preprocessing.transform()
        self._array: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        if self._array is None:  # in each worker by itself
            self._array = np.load(self.path, mmap_mode="r", allow_pickle=False)
        picture = Image.fromarray(np.array(self._array[self._start + position]))
        return self._transform(picture), int(self.labels[position])

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_array": None}


class DataSetPictures(Pictures):
    """Pictures of a data set of (PIL image, label), such as timm's `create_dataset` opens."""

    def __init__(self, data: Any, preprocessing: Preprocessing) -> None:
        self.data, self._transform = data, preprocessing.transform()

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        with readable(f"picture {position} of the data set"):
            picture, label = self.data[position]
        return self._transform(picture), int(label)


class EmbeddedPictures(Pictures):
    """The test images of an embedded set."""

    def __init__(self, data: EmbeddedSet, preprocessing: Preprocessing) -> None:
        images, self.labels = data.load("test").tensors
        self.images = fitted(images, preprocessing.channels, preprocessing.size)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        return self.images[position], int(self.labels[position])


def spread(total: int, count: int | None) -> list[int]:
    """The positions of `count` of `total` pictures, evenly spread, as folders are in the order of classes; or all.

    Raises:
        ValueError: a count below 1 or beyond what is there.
    """
    if count is None:
        return list(range(total))
    solvers.checks.positive_int("images", count)
    if count > total:
        raise ValueError(f"there are {total} pictures, got images={count}")
    return [i * total // count for i in range(count)]
