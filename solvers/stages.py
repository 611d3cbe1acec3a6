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
            self._memory = y.new_empty(len(y), self._num_stages, *y.shape[1:])
            self._slots = self._memory.unbind(1)
            self._first = [self._memory.view(len(y), self._num_stages, -1)[:, :n] for n in range(self._num_stages + 1)]
            self._weights = coefficients.new_empty(len(y), *coefficients.shape)
            self._rows = self._split(self._weights)

    def begin(self, rate: Tensor, step: Tensor) -> None:
        """A step of the lengths `step` (batch,), whose first stage is `rate`, shaped as a state."""
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
        """The stage `target` - y."""
        out = None if self._memory is None else self._slots[len(self._rates)]
        self._rates.append(torch.sub(target, y, out=out))

    def combined(self, y: Tensor) -> Tensor:
        """y + h sum_j a_j k_j over the stages so far, for y (batch, 1, features)."""
        return torch.baddbmm(y, self._rows[len(self._rates) - 1], self.together)

    def error(self) -> Tensor:
        """(batch, 1, features)"""
        return torch.bmm(self._rows[-1], self.together)

    @property
    def together(self) -> Tensor:
        """All so far, (batch, stages, features)."""
        if self._memory is not None:
            return self._first[len(self._rates)]
        return torch.stack(self._rates, 1).view(len(self.first), len(self._rates), -1)

    @property
    def first(self) -> Tensor:
        return self._rates[0]

    @property
    def last(self) -> Tensor:
        return self._rates[-1]


class Stepper:
    """The arithmetic of the steps of one solve, on the device. States are (batch, ...), times and steps (batch,).

    A field that offers its `iteration` is evaluated by that where no derivatives are recorded: what does not depend on
    the state is then computed once.
    """

    def __init__(self, field: Field, tableau: EmbeddedTableau, rtol: float, atol: float, y: Tensor, args: Any) -> None:
        self.recorded = is_recorded([y, *tensors(args)])
        self._field, self._tableau, self._args = field, tableau, args
        self._like, self._flat = y, (len(y), 1, -1)
        self._nodes = np.array(tableau.method.c)[:, None]
        self._rtol, self._atol = rtol, y.new_tensor(atol or torch.finfo(y.dtype).tiny)
        self.stages = Stages(y, self.upload(tableau.coefficients), self.recorded)
        self._iterate: Callable[[Tensor], Tensor] | None = None
        if not self.recorded and defines(type(field), "iteration", "iterate", "__call__", "forward"):
            self._iterate = field.iteration(args)  # type: ignore[attr-defined]

    def upload(self, numbers: np.ndarray) -> Tensor:
        return torch.from_numpy(numbers.astype(_NUMBERS[self._like.dtype])).to(self._like.device)

    def per_sample(self, numbers: np.ndarray) -> Tensor:
        """Numbers (..., batch) shaped to broadcast against states."""
        return self.upload(numbers).view(*numbers.shape, *[1] * (self._like.ndim - 1))

    def rate_at(self, t: Tensor, y: Tensor) -> Tensor:
        """The field at times that broadcast against the state y."""
        return rate_of_state(self._field(t, y, self._args), y)

    def step(self, t: np.ndarray, step: np.ndarray, y: Tensor, rate: Tensor, evaluate_end: bool = True) -> Tensor:
        """The state at t + step, from (t, y) where the field is `rate`; the stages are kept until the next step."""
        times: Any = None
        if self._iterate is None:
            times = self.per_sample(t + self._nodes * step).unbind()
        stages = self.stages
        stages.begin(rate, self.upload(step))
        start, last = y.view(self._flat), len(self._nodes) - 1
        for n in range(1, last + 1):
            y_next = stages.combined(start).view(y.shape)
            if n == last and not evaluate_end:
                break
            if self._iterate is None:
                stages.append(self.rate_at(times[n], y_next))
            else:
                stages.append_difference(rate_of_state(self._iterate(y_next), y), y_next)
        return y_next

    @torch.no_grad()
    def measure(self, y: Tensor, y_next: Tensor, with_norms: bool) -> list[np.ndarray]:
        """Of the last step, from the device to the host at once: the error in units of the tolerance; and with norms
        the largest magnitudes of the state at its end and of the field there. Each (batch,)."""
        ratio = self.rms(self.stages.error() / self.scale(y, y_next).view(self._flat))
        if not with_norms:
            return [on_host(ratio).astype(np.float64)]
        return list(on_host(torch.stack([ratio, max_norm(y_next), max_norm(self.stages.last)])).astype(np.float64))

    def scale(self, y: Tensor, y_next: Tensor) -> Tensor:
        """atol + rtol max(|y|, |y'|)"""
        return torch.add(self._atol, torch.maximum(y.abs(), y_next.abs()), alpha=self._rtol)

    @staticmethod
    def rms(y: Tensor) -> Tensor:
        """Root mean square of each sample, (batch,)."""
        y = y.flatten(1) if y.ndim > 1 else y[:, None]
        return torch.linalg.vector_norm(y, dim=1) / math.sqrt(y.shape[1])

    def inside(self, t: np.ndarray, step: np.ndarray, time: float, sample: np.ndarray, y: Tensor) -> Tensor:
        """The states of the samples `sample` at a time within the last step, which began at (t, y)."""
        if self._tableau.dense_order is None:
            shorter = np.zeros_like(t)
            shorter[sample] = time - t[sample]
            return self.rows(self.step(t, shorter, y, self.stages.first, evaluate_end=False), sample)
        dense, length = np.array(self._tableau.dense), step[sample, None]
        powers = ((time - t[sample, None]) / length) ** np.arange(1, dense.shape[1] + 1)
        weights = self.upload((length * (powers[:, None] * dense).sum(-1))[:, None])  # row by row, as `@` is not
        start, stages = self.rows(y, sample), self.rows(self.stages.together, sample)
        return torch.baddbmm(start.view(len(sample), 1, -1), weights, stages).view(start.shape)

    @staticmethod
    def rows(y: Tensor, sample: np.ndarray) -> Tensor:
        """Those of the samples `sample`."""
        return y if len(sample) == len(y) else y[torch.from_numpy(sample).to(y.device)]
