"""Batches of augmented images, whose augmentation depends on seed, epoch and image alone."""

import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.transforms.functional import to_tensor

from vars_ode.data import UnreadablePicture
from vars_ode.training.keyed import generator, seeded
from vars_ode.training.order import Key

Augmentation = Callable[[Tensor, Sequence[torch.Generator]], Tensor]
Unreadable = Literal["stop", "replace", "leave out"]


class Batch(NamedTuple):
    """Images with labels; which pictures could not be read, and whether that is the end of it."""

    images: Tensor
    labels: Tensor
    unreadable: tuple[str, ...] = ()
    failed: bool = False


class Images(Dataset[Batch]):
    """The augmented images of a training, by lists of `Key`.

    Args:
        data: a `TensorDataset` of (images, labels), or a data set of (image, label) with images that are tensors,
            arrays or PIL images. Its own random transforms are seeded for the image and the epoch.
        seed: of the training.
        augment: applied to each batch of images, with a generator for each image.
        unreadable: "stop" at a picture that cannot be read, "replace" it by the next one, or "leave out".
    """

    def __init__(
        self, data: Dataset[Any], seed: int, augment: Augmentation | None = None, unreadable: Unreadable = "stop"
    ) -> None:
        if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
            raise ValueError(
                f"expected a data set with a length and an index, such as an ImageFolder or a TensorDataset of "
                f"(images, labels), got {type(data).__name__}"
            )
        if isinstance(data, TensorDataset):
            check_tensors(data)
        self.data, self.seed, self.augment, self.unreadable = data, seed, augment, unreadable

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """What torch's DataLoader asks for, instead of one image after the other."""
        if isinstance(self.data, TensorDataset):
            chosen = torch.tensor([look.image for look in keys])
            images, labels = self.data.tensors
            batch = Batch(images[chosen], labels[chosen])
        else:
            batch = self._read(keys)
        if self.augment is None or not len(batch.images):
            return batch
        own = [generator(self.seed, "augmentation", *look) for look in keys]
        return batch._replace(images=self.augment(batch.images, own))

    def _read(self, keys: Sequence[Key]) -> Batch:
        images, labels = [], []
        unreadable: list[str] = []
        for look in keys:
            found = self._first_readable(look, unreadable)
            if found is not None:
                image, label = found
                images.append(image if isinstance(image, Tensor) else to_tensor(np.asarray(image)))
                labels.append(int(label))
            elif self.unreadable != "leave out":  # told by the process that trains: workers dress errors up
                return Batch(torch.empty(0), torch.empty(0, dtype=torch.int64), tuple(unreadable), failed=True)
        stacked = torch.stack(images) if images else torch.empty(0)
        return Batch(stacked, torch.tensor(labels, dtype=torch.int64), tuple(unreadable))

    def _first_readable(self, look: Key, unreadable: list[str]) -> tuple[Any, Any] | None:
        """The image of a key or, where it is to be replaced, the next that can be read; adds to those that cannot."""
        for step in range(len(self) if self.unreadable == "replace" else 1):
            index = (look.image + step) % len(self)
            try:
                with seeded(self.seed, "augmentation", look.epoch, index, look.repeat):
                    image, label = self.data[index]
                return image, label
            except UnreadablePicture as error:
                unreadable.append(str(error))
        return None


def told(batch: Batch) -> Batch:
    """The batch, or the error that a picture in it ended the reading."""
    if batch.failed:
        raise UnreadablePicture(f"{batch.unreadable[-1]}: repair or remove it, or let such pictures be skipped")
    return batch


def batches(images: Images, looks: Iterator[Sequence[Key]], workers: int, pin_memory: bool = False) -> Iterator[Batch]:
    """The batches of lists of keys, one after the other, read by `workers` processes ahead of time."""
    loader = DataLoader(
        images,
        batch_sampler=_Once(looks),  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_as_is,  # type: ignore[arg-type]
        pin_memory=pin_memory,
        worker_init_fn=_ignore_signals if workers else None,
    )
    return iter(loader)


def _ignore_signals(_: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach all processes; the one that trains decides, and ends its workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class _Once:
    """A batch sampler out of an iterator."""

    def __init__(self, looks: Iterator[Sequence[Key]]) -> None:
        self._looks = looks

    def __iter__(self) -> Iterator[Sequence[Key]]:
        return self._looks


def _as_is(batch: Batch) -> Batch:
    return batch


def check_tensors(data: TensorDataset) -> None:
    """A ValueError unless the data set holds (images, int64 labels)."""
    if len(data.tensors) != 2:
        raise ValueError(f"expected a TensorDataset of (images, labels), got one of {len(data.tensors)} tensors")
    labels = data.tensors[1]
    if labels.dtype != torch.int64 or labels.ndim != 1:
        raise ValueError(
            f"expected class indices as labels, torch.int64 (images,), got {labels.dtype} {tuple(labels.shape)}"
        )


def augmentation_of(mirrors: bool) -> Augmentation:
    """`flip_and_shift` for images that may be mirrored, or that may not."""
    return partial(flip_and_shift, flip=mirrors)


def flip_and_shift(
    images: Tensor, generators: Sequence[torch.Generator], pixels: int | None = None, flip: bool = True
) -> Tensor:
    """Each image mirrored with probability 1/2, and moved by up to `pixels` both ways with its edge repeated.

    Args:
        images: (batch, channels, height, width).
        generators: on the CPU, one for each image.
        pixels: a fourteenth of the shorter side by default.
        flip: False for images that mean something else when they are mirrored, such as digits.
    """
    batch, _, height, width = images.shape
    pixels = round(min(height, width) / 14) if pixels is None else pixels
    places = 2 * pixels + 1
    drawn = torch.stack([torch.randint(2 * places**2, (), generator=own) for own in generators])
    mirrored, offsets = drawn % 2 == 0, torch.stack([drawn // 2 // places, drawn // 2 % places], 1)
    if flip:
        images = torch.where(mirrored.view(-1, 1, 1, 1).to(images.device), images.flip(-1), images)
    padded = F.pad(images, [pixels] * 4, mode="replicate")
    rows = (torch.arange(height) + offsets[:, :1]).view(batch, 1, height, 1).to(images.device)
    columns = (torch.arange(width) + offsets[:, 1:]).view(batch, 1, 1, width).to(images.device)
    sample = torch.arange(batch, device=images.device).view(-1, 1, 1, 1)
    channel = torch.arange(images.shape[1], device=images.device).view(1, -1, 1, 1)
    return padded[sample, channel, rows, columns]
