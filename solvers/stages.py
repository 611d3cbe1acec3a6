"""One step of an embedded Runge-Kutta method, with a step size of its own for every sample."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solvers.checks import rate_of_state
from solvers.field import Field
from solvers.steady_state import max_norm
from solvers.tableau import EmbeddedTableau
from solvers.tracing import is_recorded, on_host
from solvers.tree import tensors


class Stages:
    """The rates k_1, ..., k_s of a step as one tensor, (batch, s, features).

    Where derivatives are recorded nothing may be written over, so they are put together anew for each combination.
    """

    def __init__(self, y: Tensor, num_stages: int, recorded: bool) -> None:
        self._memory = None if recorded else y.new_empty(len(y), num_stages, y.shape[1])
        self._rates: list[Tensor] = []

    def begin(self, rate: Tensor) -> None:
        """A step whose first stage is `rate`, (batch, features)."""
        self._rates = []
        self.append(rate)

    def append(self, rate: Tensor) -> None:
        if self._memory is not None:
            rate = self._memory[:, len(self._rates)].copy_(rate)
        self._rates.append(rate)

    @property
    def together(self) -> Tensor:
        """All so far, (batch, stages, features)."""
        return torch.stack(self._rates, 1) if self._memory is None else self._memory[:, : len(self._rates)]

    @property
    def first(self) -> Tensor:
        return self._rates[0]

    @property
    def last(self) -> Tensor:
        return self._rates[-1]


class Stepper:
    """The arithmetic of the steps of one solve, on the device: states (batch, features), times and steps (batch,).

    A combination of stages, y + h sum_j a_j k_j, is one product of matrices per sample, whose result does not depend on
    how many samples there are.
    """

    def __init__(
        self, field: Field, tableau: EmbeddedTableau, rtol: float, atol: float, y: Tensor, shape: torch.Size, args: Any
    ) -> None:
        self.recorded = is_recorded([y, *tensors(args)])
        self._field, self._tableau, self._args, self._shape = field, tableau, args, shape
        self._rtol, self._atol, self._like = rtol, atol, y
        method = tableau.method
        rows = [(*row, *[0.0] * (method.num_stages - len(row))) for row in (*method.a, tableau.b_error)]
        self._weights = torch.tensor(rows, dtype=y.dtype, device=y.device)
        self._nodes = np.array(method.c)[:, None]
        self.stages = Stages(y, method.num_stages, self.recorded)

    def upload(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self._like.dtype).to(self._like.device)

    def rate_at(self, t: np.ndarray, y: Tensor) -> Tensor:
        return self._rate(self.upload(t).view(-1, *[1] * (len(self._shape) - 1)), y)

    def _rate(self, t: Tensor, y: Tensor) -> Tensor:
        state = y.view(self._shape)
        return rate_of_state(self._field(t, state, self._args), state).reshape(self._like.shape)

    def step(self, t: np.ndarray, step: np.ndarray, y: Tensor, rate: Tensor, evaluate_end: bool = True) -> Tensor:
        """The state at t + step, from (t, y) where the field is `rate`; the stages are kept until the next step."""
        times = t + self._nodes * step
        numbers = self.upload(np.concatenate([step[None], times]))
        self._scaled = numbers[0].view(-1, 1, 1) * self._weights
        times = numbers[1:].view(len(times), -1, *[1] * (len(self._shape) - 1)).unbind()
        self.stages.begin(rate)
        for n, time in enumerate(times[1:], 1):
            y_next = self._combined(y, self._scaled[:, n - 1 : n, :n])
            if evaluate_end or n < len(times) - 1:
                self.stages.append(self._rate(time, y_next))
        return y_next

    def _combined(self, y: Tensor, weights: Tensor) -> Tensor:
        """y + sum_j weights_j k_j, for weights (batch, 1, stages)."""
        return torch.baddbmm(y[:, None], weights, self.stages.together).view(y.shape)

    @torch.no_grad()
    def measure(self, y: Tensor, y_next: Tensor, with_norms: bool) -> np.ndarray:
        """Of the last step, from the device to the host at once: the error in units of the tolerance; and with norms
        the largest magnitudes of the state at its end and of the field there. (1 or 3, batch)"""
        error = torch.bmm(self._scaled[:, -1:], self.stages.together).view(y.shape)
        ratio = self.rms(error / self.scale(y, y_next))
        measures = [ratio, max_norm(y_next), max_norm(self.stages.last)] if with_norms else [ratio]
        return on_host(torch.stack(measures)).astype(np.float64)

    def scale(self, y: Tensor, y_next: Tensor) -> Tensor:
        """atol + rtol max(|y|, |y'|)"""
        smallest = self._atol or torch.finfo(y.dtype).tiny
        return torch.maximum(y.abs(), y_next.abs()).mul(self._rtol).add(smallest)

    @staticmethod
    def rms(y: Tensor) -> Tensor:
        """Root mean square of each sample, (batch,)."""
        return torch.linalg.vector_norm(y, dim=1) / math.sqrt(y.shape[1])

    def inside(self, t: np.ndarray, step: np.ndarray, time: float, sample: np.ndarray, y: Tensor) -> Tensor:
        """The states of the samples `sample` at a time within the last step, which began at (t, y); (rows, features)."""
        if self._tableau.dense_order is None:
            return self._by_a_shorter_step(t, time, sample, y)
        dense = np.array(self._tableau.dense)
        length = step[sample, None]
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
