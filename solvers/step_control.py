"""Step sizes from error estimates, for each sample by itself: arrays (batch,) in float64 on the host."""

import math

import numpy as np

from solvers.bookkeeping import last_time, smallest_step
from solvers.solver import Problem

SAFETY = 0.9  # aims a little below the tolerance, so that few steps are rejected
SHORTEST, LONGEST = 0.2, 10.0  # factors from one step to the next
# Exponents of the last error and of the one before, times the order of the error (Soderlind, Automatic control and
# adaptive time-stepping, Numer. Algorithms 2002). Without the second, steps at the limit of stability are rejected two
# and three times as often; a larger one takes more steps to the same error, over the DETEST set.
NOW, BEFORE = 1.0, 0.2
FARTHEST = 30.0  # of Hairer's 100: with that bosh3's error estimate on fast linear decay, at h f'(y) = -1, is exactly 0


class StepControl:
    """Where each sample stands and how long its next step is.

    Attributes:
        t: times.
        length: of the next steps, positive, without a look at the end of the interval.
        end, direction: of the integration.
    """

    def __init__(self, problem: Problem, order: int, batch: int) -> None:
        self._problem = problem
        self._order = order  # of the error of a step
        self.end = last_time(problem)
        self.direction = 1.0 if self.end >= problem.t0 else -1.0
        self.t = np.full(batch, problem.t0)
        self.length = np.zeros(batch)
        self._before = np.ones(batch)  # the error ratio of the last accepted step
        self._rejected = np.zeros(batch, dtype=bool)

    def probe(self, size: np.ndarray, speed: np.ndarray) -> np.ndarray:
        """An Euler step that shows the second derivative; Hairer, Norsett & Wanner, Solving ODEs I, II.4.

        Args:
            size, speed: root mean square of the start and of the field there, in units of the tolerance.
        """
        unknown = (size < 1e-5) | (speed < 1e-5)
        with np.errstate(all="ignore"):
            self._probe = self._within(np.where(unknown, 1e-6, 0.01 * size / speed))
        self._speed, self._farthest = speed, np.where(unknown, math.inf, FARTHEST * self._probe)
        return self.direction * self._probe

    def begin(self, change: np.ndarray) -> None:
        """Choose the first step by Hairer's rule, given how much that Euler step changed the field."""
        with np.errstate(all="ignore"):
            fastest = np.maximum(self._speed, change / self._probe)
            self.length = np.minimum(self._farthest, (0.01 / fastest) ** (1 / self._order))
        self.length = self._within(self.length)

    def next_steps(self, active: np.ndarray) -> np.ndarray:
        """The signed steps to try: to the end of the interval at most, and zero for samples that have stopped."""
        self.ends = self.length >= self.direction * (self.end - self.t)
        steps = np.where(self.ends, self.end - self.t, self.direction * self.length)
        return np.where(active, steps, 0.0)

    def adapt(self, ratio: np.ndarray, steps: np.ndarray, moved: np.ndarray) -> None:
        """Move the samples that `moved`, and choose the next lengths by the error ratios of this step."""
        with np.errstate(all="ignore"):
            accepted = ratio ** (-NOW / self._order) * self._before ** (BEFORE / self._order)
            factor = SAFETY * np.where(moved, accepted, ratio ** (-1 / self._order))
        longest = np.where(self._rejected | ~moved, 1.0, LONGEST)
        factor = np.where(np.isfinite(ratio), np.minimum(np.maximum(factor, SHORTEST), longest), SHORTEST)
        self.length = np.where(steps == 0, self.length, factor * np.abs(steps))
        self.t = np.where(moved, np.where(self.ends, self.end, self.t + steps), self.t)
        self._before = np.where(moved, np.maximum(ratio, 1e-4), self._before)
        self._rejected = ~moved

    @property
    def too_small(self) -> np.ndarray:
        """Whether the next steps would be lost in the rounding of time."""
        return np.asarray(self.length < smallest_step(self._problem, self.t))

    def _within(self, length: np.ndarray) -> np.ndarray:
        """A first length that can be taken; a small one where the field overflows a little ahead of the start."""
        span = abs(self.end - self._problem.t0)
        usable = np.where(np.isfinite(length) & (length > 0), length, 1e-6 * min(1.0, span))
        return np.clip(usable, min(span, 2 * float(smallest_step(self._problem, self._problem.t0))), span)
