"""Values over seeds, and whether two sets of them differ: spreads, paired differences, corrections."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


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


@dataclass(frozen=True)
class Difference:
    """How much higher one score is than another, on the same images.

    Attributes:
        mean: the difference of the means, in the scores' unit.
        low, high: ends of the bootstrap interval.
        p: two-sided bootstrap p-value of no difference; at least 1 / resamples.
        seeds, images: over how many it was taken. Of one seed the interval says nothing about other trainings.
    """

    mean: float
    low: float
    high: float
    p: float
    seeds: int
    images: int


def bootstrap(
    ours: int, theirs: int, images: int, resamples: int = 2000, seed: int = 0
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]]:
    """Resamples of seeds and images, both with replacement: (our seeds, their seeds, weights of the images, sum 1).

    Seeds are the same for both where both have as many, and drawn independently where they have not.

    Args:
        ours, theirs: numbers of seeds.
        images: how many.
        resamples: how many.
        seed: of the resampling.
    """
    random = np.random.default_rng(seed)
    for _ in range(resamples):
        of_a = random.integers(ours, size=ours)
        of_b = of_a if ours == theirs else random.integers(theirs, size=theirs)
        yield of_a, of_b, np.bincount(random.integers(images, size=images), minlength=images) / images


def paired_difference(
    ours: ArrayLike,
    theirs: ArrayLike,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    *,
    our_weights: ArrayLike | None = None,
    their_weights: ArrayLike | None = None,
) -> Difference:
    """The difference of two models' scores, with a percentile bootstrap interval (Efron and Tibshirani 1993).

    Seeds and images are resampled, both with replacement: a difference has to hold for other trainings and for other
    images. Images are paired; seeds are, where both have as many, and resampled independently where they have not.

    Args:
        ours, theirs: scores (seeds, images), such as 1 where the answer was right; or the mean over conditions.
        confidence: of the interval.
        resamples: how many.
        seed: of the resampling.
        our_weights, their_weights: what each score counts, (seeds, images), such as 1 for the images that a model
            recognises when they are clean; the same for all by default.

    Raises:
        ValueError: other shapes, or no images.
    """
    a, b = np.atleast_2d(np.asarray(ours, float)), np.atleast_2d(np.asarray(theirs, float))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not a.size or not b.size:
        raise ValueError(
            f"expected two tables (seeds, images) of scores on the same images, got {a.shape} and {b.shape}"
        )
    images = a.shape[1]
    counts_a = np.ones_like(a) if our_weights is None else np.atleast_2d(np.asarray(our_weights, float))
    counts_b = np.ones_like(b) if their_weights is None else np.atleast_2d(np.asarray(their_weights, float))
    found = np.empty(resamples)
    for i, (of_a, of_b, weights) in enumerate(bootstrap(len(a), len(b), images, resamples, seed)):
        found[i] = _weighted(a[of_a], counts_a[of_a], weights) - _weighted(b[of_b], counts_b[of_b], weights)
    tail = (1 - confidence) / 2
    low, high = np.quantile(found, (tail, 1 - tail))
    p = 2 * min((found <= 0).mean(), (found >= 0).mean())
    clipped = float(min(max(p, 1 / resamples), 1.0))
    whole = np.full(images, 1 / images)
    mean = float(_weighted(a, counts_a, whole) - _weighted(b, counts_b, whole))
    return Difference(mean, float(low), float(high), clipped, min(len(a), len(b)), images)


def _weighted(scores: NDArray[np.float64], counts: NDArray[np.float64], images: NDArray[np.float64]) -> float:
    """The mean of scores (seeds, images), each counted so often; 0 where none counts."""
    total = float(images @ counts.mean(0))
    return float(images @ (scores * counts).mean(0)) / total if total else 0.0


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979), in the same order: family-wise error at each threshold."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected
