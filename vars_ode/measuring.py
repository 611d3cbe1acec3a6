"""How everything here is measured: in evaluation mode, by the fastest of several runs, with the peak of its memory."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import solvers

T = TypeVar("T")


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every submodule has the mode that it had.

    ``model.train(was_training)`` would not do: it would thaw submodules that were frozen on purpose, such as a
    BatchNorm.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class Cost(NamedTuple):
    """Milliseconds of the fastest of several runs; the most memory in use at once that a run had asked for, in KiB."""

    milliseconds: float
    peak_kib: float


def cost_of(run: Callable[[], T], device: torch.device, repeats: int = 3) -> tuple[T, Cost]:
    """Run once for the memory, which also warms up, and then `repeats` times against the clock; also the result."""
    peak = peak_bytes(run, device) / 1024
    result, milliseconds = fastest(run, device, repeats)
    return result, Cost(milliseconds, peak)


def fastest(run: Callable[[], T], device: torch.device, repeats: int = 3) -> tuple[T, float]:
    """The result and the milliseconds of the fastest of several runs: the others were disturbed by something else."""
    solvers.checks.positive_int("repeats", repeats)
    best = float("inf")
    for _ in range(repeats):
        result, milliseconds = timed(run, device)
        best = min(best, milliseconds)
    return result, best


def timed(run: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """The result and the milliseconds of one run."""
    _wait(device)
    started = time.perf_counter()
    result = run()
    _wait(device)
    return result, 1e3 * (time.perf_counter() - started)


def interleaved(runs: Sequence[Callable[[], object]], device: torch.device, repeats: int = 15) -> list[float]:
    """Median milliseconds of each of several runs that take turns, so that a busy machine is busy for all of them."""
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(repeats + 1):
        for run, record in zip(runs, times, strict=True):
            _, milliseconds = timed(run, device)
            if turn:  # the first turn warms up
                record.append(milliseconds)
    return [statistics.median(record) for record in times]


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The most memory that was in use at once while `run` ran, beside what was in use before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with PeakMemory() as counter:  # the allocator of the CPU keeps no count
        run()
    return counter.peak


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of the tensors alive at once that were made inside it; `peak` is the most."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live: dict[int, int] = {}
        self._total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in solvers.tree.tensors(result):
            self._watch(leaf)
        return result

    def _watch(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._live:
            self._live[key] = storage.nbytes()
            self._total += storage.nbytes()
            weakref.finalize(storage, self._forget, key)
            self.peak = max(self.peak, self._total)

    def _forget(self, key: int) -> None:
        self._total -= self._live.pop(key, 0)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
