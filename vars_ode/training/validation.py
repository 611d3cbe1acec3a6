"""The accuracy on images that are held out of training, counted over all processes."""

from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, Subset


class Validation:
    """Held-out images.

    Args:
        data: a data set of (image, label), with images as the model takes them.
        batch_size: images per batch; no effect on the result.
    """

    def __init__(self, data: Dataset[Any], batch_size: int = 256) -> None:
        self.data, self._batch_size = data, batch_size
        self._count = len(data)  # type: ignore[arg-type]
        if not self._count:
            raise ValueError("there are no images to validate on; hold some out, or leave validation out")

    def accuracy(self, model: nn.Module, accelerator: Any) -> float:
        """Top-1 accuracy, a fraction; each process measures its share."""
        from vars_ode.robustness import accuracy  # brings SciPy, which the help of the commands should not wait for

        mine = range(accelerator.process_index, self._count, accelerator.num_processes)
        correct = 0.0
        device = next(model.parameters()).device
        if len(mine):
            shard = Subset(self.data, mine)
            correct = len(mine) * accuracy(model, shard, device, self._batch_size)
        total = accelerator.reduce(torch.tensor(round(correct), device=device), "sum")
        return int(total) / self._count
