"""Evaluation mode, time and peak memory: one way each, for all measurements."""

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
    """Evaluation mode inside; afterwards every submodule is back in its own mode.

    ``model.train(was_training)`` would set all submodules to one mode, also a BatchNorm that was frozen on purpose.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def check_device(name: str) -> torch.device:
    """The device of that name; a ValueError where torch has none, or cannot reach it here."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"there is no device {name!r} here ({reason}); take cpu, or cuda where there is one") from None
    return device


class Cost(NamedTuple):
    """Milliseconds of the fastest of several runs, and the peak of the memory that one run allocates, in KiB."""

    milliseconds: float
    peak_kib: float


def cost_of(run: Callable[[], T], device: torch.device, repeats: int = 3) -> tuple[T, Cost]:
    """The result and the cost: one run for the memory, which also warms up, then `repeats` timed ones."""
    peak = peak_bytes(run, device) / 1024
    result, milliseconds = fastest(run, device, repeats)
    return result, Cost(milliseconds, peak)


def fastest(run: Callable[[], T], device: torch.device, repeats: int = 3) -> tuple[T, float]:
    """The result and the milliseconds of the fastest of several runs, which other processes disturbed least."""
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


def interleaved(
    runs: Sequence[Callable[[], object]],
    device: torch.device,
    repeats: int = 15,
    of: Callable[[Sequence[float]], float] = statistics.median,
    processor: bool = False,
) -> list[float]:
    """Milliseconds of each of several runs that take turns, so that a busy machine is busy for all of them.

    Args:
        runs: what is timed.
        device: that they run on.
        repeats: timed turns, after one that warms up.
        of: what is made of the times of a run: their median, or `min`, which other processes disturb least.
        processor: on a CPU, time of the processor instead, in which waits for other processes do not count.
    """
    alone = processor and device.type == "cpu"
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(repeats + 1):
        for run, record in zip(runs, times, strict=True):
            _, milliseconds = processor_time(run) if alone else timed(run, device)
            if turn:  # the first turn warms up
                record.append(milliseconds)
    return [of(record) for record in times]


def processor_time(run: Callable[[], T]) -> tuple[T, float]:
    """The result and the milliseconds of processor time of one run on the CPU, without waits for other processes."""
    started = time.process_time()
    result = run()
    return result, 1e3 * (time.process_time() - started)


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The peak of the memory in use during a run, beyond what was in use before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with PeakMemory() as counter:  # the allocator of the CPU keeps no count
        run()
    return counter.peak


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of live tensors that were created inside the context; `peak` is the maximum."""

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
