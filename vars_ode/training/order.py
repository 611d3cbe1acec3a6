"""Which images each update of a training sees."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch

from vars_ode.training.keyed import generator


class Key(NamedTuple):
    """One look at an image: what its augmentation is drawn for."""

    epoch: int
    image: int
    repeat: int


class Order:
    """The order of the images, which depends on the seed and the epoch alone; and the share of each process.

    The processes and accumulation steps of an update see parts of one global batch. An image and its mirror in the
    batch's order are in the same part, so that Mixup, which mixes a batch with its reverse, mixes the same pairs
    whatever the number of parts.

    Args:
        images: how many there are.
        batch: images per update, over all processes and accumulation steps.
        seed: of the training.
        repeats: looks at an image in an epoch, next to each other (repeated augmentation, Hoffer et al. 2020, arXiv
            1901.09335); an epoch has as many updates as without, and so sees a part of the images. 0 is 1.
    """

    def __init__(self, images: int, batch: int, seed: int, repeats: int = 0) -> None:
        self._images, self._batch, self._seed, self._repeats = images, batch, seed, max(repeats, 1)
        self.updates_per_epoch = images // batch
        if self.updates_per_epoch == 0:
            raise ValueError(f"{images} images do not fill one batch of {batch}; lower batch_size")
        self._indices = lru_cache(maxsize=2)(self._shuffled)

    def update(self, update: int, part: int = 0, parts: int = 1) -> Sequence[Key]:
        """What a part of an update, counted from 0 over all epochs, sees."""
        epoch, batch = divmod(update, self.updates_per_epoch)
        first = batch * self._batch
        indices = self._indices(epoch)
        return [
            Key(epoch, int(indices[(first + place) // self._repeats]), (first + place) % self._repeats)
            for place in _places(self._batch, part, parts)
        ]

    def _shuffled(self, epoch: int) -> torch.Tensor:
        return torch.randperm(self._images, generator=generator(self._seed, "order", epoch))


def _places(batch: int, part: int, parts: int) -> Sequence[int]:
    """Of one of equal parts of a batch: as many from its front as mirrored from its back, where that is possible."""
    size = batch // parts
    if size % 2:
        return range(part * size, (part + 1) * size)
    half = size // 2
    return [*range(part * half, (part + 1) * half), *range(batch - (part + 1) * half, batch - part * half)]
