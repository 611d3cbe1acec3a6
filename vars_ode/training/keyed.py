"""Random numbers that belong to what they are for, so that workers, processes and restarts change nothing."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

import numpy as np
import torch


def key(*parts: int | str) -> int:
    """A seed of 63 bits for what the parts name, the same in every process."""
    digest = blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A generator on the CPU for what the parts name."""
    return torch.Generator().manual_seed(key(*parts))


@contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Inside, the global generators of Python, NumPy and torch (on the CPU) are seeded for what the parts name.

    timm's and torchvision's transforms, and timm's Mixup, draw from them. Afterwards they are as before.
    """
    seed = key(*parts)
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 (as timm uses it)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])
