"""Exponential Euler: the linear decay of a field integrated exactly."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from solvers.field import Field
from solvers.fixed_step import FixedStepSolver
from solvers.solver import Problem, require
from solvers.stepping import Interpolation, Memory, SteppingLoop


@dataclass(frozen=True)
class ExponentialEuler(FixedStepSolver):
    """Order 1, one evaluation per step, for fields f(t, y) = -c y + g(t, y) that name c as `linear_rate`.

    With g frozen over a step of length h the exact solution is y + (1 - exp(-c h)) / c f(t, y) (Hochbruck & Ostermann,
    Exponential integrators, Acta Numerica 2010, eq. 2.4 with its phi_1). Where c = 1, that is Euler's step with h
    replaced by 1 - exp(-h): a step never overshoots, however long.
    """

    order: ClassVar[int] = 1

    @property
    def evals_per_step(self) -> int:
        return 1

    @property
    def interpolation(self) -> Interpolation:
        return "linear"

    def loop(self, problem: Problem) -> SteppingLoop:
        self._linear_rate(problem.field)  # refuse before any step is taken
        return super().loop(problem)

    def step(
        self, field: Field, t: Tensor, dt: float, y: Tensor, rate: Tensor, memory: Memory, args: Any
    ) -> tuple[Tensor, Memory]:
        c = self._linear_rate(field)
        try:
            weight = -math.expm1(-c * dt) / c if c else dt
        except OverflowError:  # backwards in time, where the decay is growth
            weight = math.copysign(math.inf, dt)
        too_large = abs(weight) > torch.finfo(y.dtype).max
        return y.add(rate, alpha=math.copysign(math.inf, dt) if too_large else weight), memory

    def _linear_rate(self, field: Field) -> float:
        return float(require(field, "linear_rate", self, "the number c in f(t, y) = -c y + g(t, y)"))
