"""The accuracy on images that are held out of training, counted over all processes."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from vars_ode.training.images import Images, batches, told
from vars_ode.training.order import Key


class Validation:
    """Held-out images.

    Args:
        data: a data set of (image, label), with images as the model takes them.
        batch_size: images per batch; no effect on the result.
        workers: processes that read images, per process.
        skip_unreadable: leave out images whose file cannot be read.
    """

    def __init__(
        self, data: Dataset[Any], batch_size: int = 256, workers: int = 0, skip_unreadable: bool = False
    ) -> None:
        self.images = Images(data, seed=0, unreadable="leave out" if skip_unreadable else "stop")
        self._batch_size, self._workers = batch_size, workers
        if not len(self.images):
            raise ValueError("there are no images to validate on; hold some out, or leave validation out")

    def accuracy(self, model: nn.Module, accelerator: Any) -> float:
        """Top-1 accuracy, a fraction; each process measures its share."""
        from vars_ode.robustness import accuracy  # brings SciPy, which the help of the commands should not wait for

        mine = range(accelerator.process_index, len(self.images), accelerator.num_processes)
        cuts = range(0, len(mine), self._batch_size)
        looks = iter([[Key(0, image, 0) for image in mine[first : first + self._batch_size]] for first in cuts])
        counted = 0

        def read() -> Iterator[tuple[Tensor, Tensor]]:
            nonlocal counted
            for batch in map(told, batches(self.images, looks, self._workers)):
                if len(batch.images):
                    counted += len(batch.images)
                    yield batch.images, batch.labels

        device = next(model.parameters()).device
        share = accuracy(model, read(), device) if len(mine) else 0.0
        totals = accelerator.reduce(torch.tensor([round(share * counted), counted], device=device), "sum")
        correct, total = totals.tolist()
        return float(correct / total)
