"""One step of an embedded Runge-Kutta method, with a step size of its own for every sample."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solvers.checks import rate_of_state
from solvers.field import Field, defines
from solvers.steady_state import max_norm
from solvers.tableau import EmbeddedTableau
from solvers.tracing import is_recorded, on_host
from solvers.tree import tensors

_NUMBERS = {torch.float32: np.float32, torch.float64: np.float64}


class Stages:
    """The rates k_1, ..., k_s of a step as one tensor, (batch, s, features), and their combinations.

    y + sum_j weights_j k_j is one product of matrices per sample, whose result does not depend on how many samples
    there are. Where derivatives are recorded nothing may be written over, so the tensor is put together anew each time.
    """

    def __init__(self, y: Tensor, coefficients: Tensor, recorded: bool) -> None:
        self._coefficients = coefficients
        self._num_stages = coefficients.shape[1]
        self._rates: list[Tensor] = []
        self._memory: Tensor | None = None
        if not recorded:
            self._memory = y.new_empty(len(y), self._num_stages, y.shape[1])
            self._slots = self._memory.unbind(1)
            self._first = [self._memory[:, :n] for n in range(self._num_stages + 1)]
            self._weights = coefficients.new_empty(len(y), *coefficients.shape)
            self._rows = self._split(self._weights)

    def begin(self, rate: Tensor, step: Tensor) -> None:
        """A step of the lengths `step` (batch,), whose first stage is `rate` (batch, features)."""
        self._rates = []
        self.append(rate)
        if self._memory is None:
            self._rows = self._split(step.view(-1, 1, 1) * self._coefficients)
        else:
            torch.mul(step.view(-1, 1, 1), self._coefficients, out=self._weights)

    def _split(self, weights: Tensor) -> list[Tensor]:
        """A row of weights for each combination: over 1, ..., s - 1 stages, and of the error over all s."""
        return [weights[:, n : n + 1, : n + 1] for n in range(self._num_stages)]

    def append(self, rate: Tensor) -> None:
        if self._memory is not None:
            rate = self._slots[len(self._rates)].copy_(rate)
        self._rates.append(rate)

    def append_difference(self, target: Tensor, y: Tensor) -> None:
        """The stage `target` - y; (batch, features)."""
        out = None if self._memory is None else self._slots[len(self._rates)]
        self._rates.append(torch.sub(target, y, out=out))

    def combined(self, y: Tensor) -> Tensor:
        """y + h sum_j a_j k_j over the stages so far, (batch, 1, features), for y of that shape."""
        return torch.baddbmm(y, self._rows[len(self._rates) - 1], self.together)

    def error(self) -> Tensor:
        """(batch, 1, features)"""
        return torch.bmm(self._rows[-1], self.together)

    @property
    def together(self) -> Tensor:
        """All so far, (batch, stages, features)."""
        return torch.stack(self._rates, 1) if self._memory is None else self._first[len(self._rates)]

    @property
    def first(self) -> Tensor:
        return self._rates[0]

    @property
    def last(self) -> Tensor:
        return self._rates[-1]


class Stepper:
    """The arithmetic of the steps of one solve, on the device: states (batch, features), times and steps (batch,).

    A field that offers its `iteration` is evaluated by that where no derivatives are recorded: what does not depend on
    the state is then computed once.
    """

    def __init__(
        self, field: Field, tableau: EmbeddedTableau, rtol: float, atol: float, y: Tensor, shape: torch.Size, args: Any
    ) -> None:
        self.recorded = is_recorded([y, *tensors(args)])
        self._field, self._tableau, self._args, self._shape = field, tableau, args, shape
        self._like, self._per_sample = y, [1] * (len(shape) - 1)
        method = tableau.method
        rows = [(*row, *[0.0] * (method.num_stages - len(row))) for row in (*method.a, tableau.b_error)]
        self._nodes = np.array(method.c)[:, None]
        self.stages = Stages(y, torch.tensor(rows, dtype=y.dtype, device=y.device), self.recorded)
        self._rtol, self._atol = rtol, y.new_tensor(atol or torch.finfo(y.dtype).tiny)
        self._iterate: Callable[[Tensor], Tensor] | None = None
        if not self.recorded and defines(type(field), "iteration", "iterate", "__call__", "forward"):
            self._iterate = field.iteration(args)  # type: ignore[attr-defined]

    def upload(self, numbers: np.ndarray) -> Tensor:
        return torch.from_numpy(numbers.astype(_NUMBERS[self._like.dtype])).to(self._like.device)

    def rate_at(self, t: np.ndarray, y: Tensor) -> Tensor:
        """The field at times (batch,)."""
        state = y.view(self._shape)
        rate = self._field(self.upload(t).view(-1, *self._per_sample), state, self._args)
        return rate_of_state(rate, state).reshape(y.shape)

    def step(self, t: np.ndarray, step: np.ndarray, y: Tensor, rate: Tensor, evaluate_end: bool = True) -> Tensor:
        """The state at t + step, from (t, y) where the field is `rate`; the stages are kept until the next step."""
        times: Any = None
        if self._iterate is None:
            times = self.upload(t + self._nodes * step).view(len(self._nodes), -1, *self._per_sample).unbind()
        self.stages.begin(rate, self.upload(step))
        start, last = y[:, None], len(self._nodes) - 1
        for n in range(1, last + 1):
            y_next = self.stages.combined(start)
            if evaluate_end or n < last:
                self._evaluate(times[n] if times else None, y_next)
        return y_next.view(y.shape)

    def _evaluate(self, time: Any, y: Tensor) -> None:
        """The next stage, at a state (batch, 1, features)."""
        state = y.view(self._shape)
        if self._iterate is not None:
            target = rate_of_state(self._iterate(state), state)
            self.stages.append_difference(target.reshape(self._like.shape), y[:, 0])
        else:
            rate = rate_of_state(self._field(time, state, self._args), state)
            self.stages.append(rate.reshape(self._like.shape))

    @torch.no_grad()
    def measure(self, y: Tensor, y_next: Tensor, with_norms: bool) -> list[np.ndarray]:
        """Of the last step, from the device to the host at once: the error in units of the tolerance; and with norms
        the largest magnitudes of the state at its end and of the field there. Each (batch,)."""
        ratio = self.rms(self.stages.error()[:, 0] / self.scale(y, y_next))
        if not with_norms:
            return [on_host(ratio).astype(np.float64)]
        return list(on_host(torch.stack([ratio, max_norm(y_next), max_norm(self.stages.last)])).astype(np.float64))

    def scale(self, y: Tensor, y_next: Tensor) -> Tensor:
        """atol + rtol max(|y|, |y'|)"""
        return torch.add(self._atol, torch.maximum(y.abs(), y_next.abs()), alpha=self._rtol)

    @staticmethod
    def rms(y: Tensor) -> Tensor:
        """Root mean square of each sample, (batch,)."""
        return torch.linalg.vector_norm(y, dim=1) / math.sqrt(y.shape[1])

    def inside(self, t: np.ndarray, step: np.ndarray, time: float, sample: np.ndarray, y: Tensor) -> Tensor:
        """The states of the samples `sample` at a time within the last step, which began at (t, y); (rows, features)."""
        if self._tableau.dense_order is None:
            return self._by_a_shorter_step(t, time, sample, y)
        dense, length = np.array(self._tableau.dense), step[sample, None]
        powers = ((time - t[sample, None]) / length) ** np.arange(1, dense.shape[1] + 1)
        weights = self.upload((length * (powers @ dense.T))[:, None])
        start, stages = self.rows(y, sample), self.rows(self.stages.together, sample)
        return torch.baddbmm(start[:, None], weights, stages)[:, 0]

    def _by_a_shorter_step(self, t: np.ndarray, time: float, sample: np.ndarray, y: Tensor) -> Tensor:
        step = np.zeros_like(t)
        step[sample] = time - t[sample]
        return self.rows(self.step(t, step, y, self.stages.first, evaluate_end=False), sample)

    @staticmethod
    def rows(y: Tensor, sample: np.ndarray) -> Tensor:
        """Those of the samples `sample`."""
        return y if len(sample) == len(y) else y[torch.from_numpy(sample).to(y.device)]
