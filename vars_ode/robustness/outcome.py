"""What a model answered for each image under one condition, and the rows that are counted from it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from vars_ode.representation import tensor_repr

__all__ = ["Outcome", "Row"]


class Row(TypedDict):
    """The accuracy under one condition."""

    condition: str  # "clean", the name of a corruption or of an attack
    severity: int  # from 1 for a corruption; 0 otherwise
    accuracy: float  # top-1, a fraction in [0, 1]


@dataclass(frozen=True, eq=False)
class Outcome:
    """Labels and predictions under one condition, one of each per image.

    Args:
        condition: ``"clean"``, the name of a corruption or of an attack.
        severity: from 1 for a corruption; 0 otherwise.
        indices: (images,) int64, the images' positions in the whole data set.
        labels: (images,) int64, the true classes.
        predictions: (images,) int64, the classes of the largest logits.

    Raises:
        ValueError: where the three tensors are not int64 of one shape (images,).
    """

    condition: str
    severity: int
    indices: Tensor
    labels: Tensor
    predictions: Tensor

    __repr__ = tensor_repr

    def __post_init__(self) -> None:
        for name in ("indices", "labels", "predictions"):
            value = getattr(self, name)
            if value.dtype != torch.int64 or value.ndim != 1 or value.shape != self.indices.shape:
                raise ValueError(
                    f"Outcome got {name} {value.dtype} {tuple(value.shape)}; expected indices, labels and predictions "
                    "as torch.int64 of one shape (images,)."
                )

    def __len__(self) -> int:
        """The number of images."""
        return self.indices.shape[0]

    @property
    def correct(self) -> Tensor:
        """(images,) bool: whether the prediction is the label."""
        return self.predictions == self.labels

    @property
    def accuracy(self) -> float:
        """Top-1, a fraction in [0, 1]. ValueError where there are no images."""
        if len(self) == 0:
            raise ValueError(f"the outcome on {self.condition!r} holds no images, of which there is no accuracy.")
        return int(self.correct.sum()) / len(self)

    @property
    def row(self) -> Row:
        """Condition, severity and accuracy as a dictionary."""
        return {"condition": self.condition, "severity": self.severity, "accuracy": self.accuracy}

    @staticmethod
    def merge(outcomes: Iterable["Outcome"]) -> "Outcome":
        """The outcome on all images of several, in the order of their indices: of processes that shared a data set.

        An image that occurs more than once, as where a sampler pads its shards to one length, is counted once.

        Raises:
            ValueError: for no outcomes, outcomes of different conditions, or an image with two labels or predictions.
        """
        outcomes = list(outcomes)
        conditions = sorted({(outcome.condition, outcome.severity) for outcome in outcomes})
        if len(conditions) != 1:
            raise ValueError(
                f"Outcome.merge got outcomes of the conditions {conditions}; expected one condition at one severity. "
                "Merge each condition by itself."
            )
        rows = [torch.stack((o.indices, o.labels, o.predictions), dim=1) for o in outcomes]
        indices, labels, predictions = torch.unique(torch.cat(rows), dim=0).unbind(1)  # sorted by the index
        twice = indices[1:] == indices[:-1]
        if twice.any():
            raise ValueError(
                f"Outcome.merge got different labels or predictions for {int(twice.sum())} images, such as index "
                f"{int(indices[1:][twice][0])}; expected the outcomes of one model. Give each process the indices of "
                "its images in the whole data set, and the same seed."
            )
        return Outcome(*conditions[0], indices, labels, predictions)
