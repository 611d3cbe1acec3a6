"""Values over seeds, and whether two sets of them differ."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """Values over seeds: their mean, sample standard deviation (None below two seeds) and range."""

    values: tuple[float, ...] = ()

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        return cls(tuple(v for v in values if math.isfinite(v)))

    @property
    def count(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return float(np.mean(self.values)) if self.values else math.nan

    @property
    def deviation(self) -> float | None:
        return float(np.std(self.values, ddof=1)) if self.count > 1 else None

    @property
    def low(self) -> float:
        return min(self.values, default=math.nan)

    @property
    def high(self) -> float:
        return max(self.values, default=math.nan)


def verdict(ours: Spread, theirs: Spread) -> str:
    """ "ahead", "behind", "within" (the spread), "single" (one seed, hence no spread) or "missing"."""
    if not (ours.count and theirs.count):
        return "missing"
    if min(ours.count, theirs.count) < 2:
        return "single"
    difference = ours.mean - theirs.mean
    disjoint = ours.low > theirs.high or ours.high < theirs.low
    if not disjoint or abs(difference) <= max(ours.deviation or 0.0, theirs.deviation or 0.0):
        return "within"
    return "ahead" if difference > 0 else "behind"
