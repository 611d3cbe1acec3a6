"""One thread and one seed for every test: results do not depend on the machine's cores or on the order of the tests."""

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # also of what tests start, and of NumPy's BLAS; before any of them loads

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def _what_stays() -> None:
    """Libraries, tests and what compilers keep stay for good: collections of garbage need not pass over them again.

    Every training ends with such a collection, which takes longer than a small training.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
