"""Random numbers that belong to an image, whatever its batch.

Corruption noise and attack starts are drawn from a generator of the image's own, whose seed is a hash of (seed,
condition, severity, image index). So an image meets the same noise whatever the batch size, the order of conditions,
the number of processes among which a data set is split, and the device.
"""

import operator
from collections.abc import Sequence
from hashlib import blake2b

from torch import Generator, Tensor

__all__ = ["check_indices", "image_generator"]


def image_generator(seed: int, condition: str, severity: int, index: int) -> Generator:
    """The generator, on the CPU, of one image under one condition.

    PyTorch's generator on the CPU keeps 32 bits of a seed, so any two different keys give the same numbers with
    probability 2**-32, and never systematically, as sums such as seed + index would.
    """
    # The repr keeps ("a", 11) and ("a1", 1) apart. Python's hash() would not do: it changes from process to process.
    try:
        key = repr((operator.index(seed), str(condition), int(severity), int(index))).encode()
    except TypeError:
        raise ValueError(f"expected a whole number as seed, got {seed!r}") from None
    return Generator().manual_seed(int.from_bytes(blake2b(key, digest_size=8).digest(), "little"))


def check_indices(indices: Tensor | Sequence[int] | None, count: int, caller: str) -> list[int]:
    """The images' global indices as integers; those of None are 0, 1, ..., count - 1.

    Raises:
        ValueError: for anything but `count` integers of at least 0.
    """
    if indices is None:
        return list(range(count))
    if isinstance(indices, Tensor) and (indices.is_floating_point() or indices.ndim != 1):
        raise ValueError(
            f"{caller} got indices {indices.dtype} {tuple(indices.shape)} for {count} images; expected their positions "
            f"in the whole data set, torch.int64 ({count},)."
        )
    try:
        found = [operator.index(index) for index in (indices.tolist() if isinstance(indices, Tensor) else indices)]
    except TypeError as error:
        raise ValueError(
            f"{caller} got indices that are not integers ({error}); expected positions in the whole data set."
        ) from None
    if len(found) != count:
        raise ValueError(f"{caller} got {len(found)} indices for {count} images; expected one per image.")
    if min(found, default=0) < 0:
        raise ValueError(f"{caller} got the index {min(found)}; expected positions in the data set, counted from 0.")
    return found
