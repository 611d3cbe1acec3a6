"""New processes that need not load the libraries anew: children of a server that has loaded them once.

Loading torch, torchvision and timm takes longer than what most tests do in another process. The packages of this
repository are not among the libraries: every child imports them itself, in the order in which its code does.
"""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext

import pytest

LIBRARIES = ("timm", "torchvision", "torchode", "torchdiffeq", "scipy.integrate", "tqdm", "IPython")
LIBRARIES += (
    "matplotlib_inline",
    "matplotlib.figure",
    "matplotlib.pyplot",
    "multiprocessing.pool",
    "concurrent.futures.process",
)


def forkserver() -> ForkServerContext:
    """The server is clean: it starts as a process of its own and runs no tests."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*LIBRARIES])
    return context


@contextmanager
def in_place_of_spawn() -> Iterator[None]:
    """Code that asks for the method "spawn" gets the server's children, which are as independent of the parent."""
    context = forkserver()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", lambda method: {"spawn": context}[method])
        yield
