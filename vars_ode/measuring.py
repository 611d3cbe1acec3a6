"""What a computation costs: time, and the memory of its intermediate results."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch

import solvers
from vars_ode.bench.memory import PeakMemory

T = TypeVar("T")


class Cost(NamedTuple):
    """Milliseconds of the fastest of several runs; the most memory in use at once that a run had asked for, in KiB."""

    milliseconds: float
    peak_kib: float


def cost_of(run: Callable[[], T], device: torch.device, repeats: int = 3) -> tuple[T, Cost]:
    """Run once for the memory, which also warms up, and then `repeats` times against the clock; also the result."""
    solvers.checks.positive_int("repeats", repeats)
    peak = _peak_bytes(run, device) / 1024
    fastest = float("inf")
    for _ in range(repeats):
        _wait(device)
        started = time.perf_counter()
        result = run()
        _wait(device)
        fastest = min(fastest, time.perf_counter() - started)
    return result, Cost(1e3 * fastest, peak)


def _peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with PeakMemory() as counter:  # the allocator of the CPU keeps no count
        run()
    return counter.peak


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
