"""The pictures of a pass in batches, corrupted where they are loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vars_ode.data import Pictures, UnreadablePicture
from vars_ode.robustness.corruptions import Corruption


class Batch(NamedTuple):
    """Images (batch, channels, height, width) in [0, 1] with labels and positions; what could not be read."""

    images: Tensor
    labels: Tensor
    indices: Tensor
    unreadable: tuple[str, ...]


class Corrupted(Dataset[Any]):
    """(position, image, label), or (position, None, why) for a picture that is left out."""

    def __init__(
        self, pictures: Pictures, corruption: Corruption | None, name: str, severity: int, seed: int, skip: bool
    ) -> None:
        self.pictures, self.corruption, self.skip = pictures, corruption, skip
        self.name, self.severity, self.seed = name, severity, seed

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, position: int) -> tuple[int, Tensor | None, int | str]:
        try:
            image, label = self.pictures[position]
        except UnreadablePicture as error:
            if not self.skip:
                raise
            return position, None, str(error)
        if self.corruption is not None:
            image = self.corruption.apply(image[None], self.name, self.severity, self.seed, [position])[0]
        return position, image, label


def batches(data: Dataset[Any], positions: Sequence[Sequence[int]], workers: int) -> Iterator[Batch]:
    """The batches of one process.

    Args:
        data: of `Corrupted` pictures.
        positions: of each batch.
        workers: processes that load; 0 for this one.
    """
    loader: DataLoader[Any] = DataLoader(
        data,
        batch_sampler=list(positions),  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_one_thread,
    )
    yield from loader


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


def _collate(items: Sequence[tuple[int, Tensor | None, int | str]]) -> Batch:
    good = [(position, image, label) for position, image, label in items if image is not None]
    bad = tuple(str(why) for _, image, why in items if image is None)
    labels, indices = (torch.tensor([item[i] for item in good], dtype=torch.int64) for i in (2, 0))
    images = torch.stack([image for _, image, _ in good]) if good else torch.zeros(0, 1, 1, 1)
    return Batch(images, labels, indices, bad)
