"""The answer of a solve: states, a status per sample, statistics."""

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor


class SolverWarning(UserWarning):
    """A solve did not do what was asked of it and went on with what it had."""


class SolverError(RuntimeError):
    """A solve failed and the caller asked for failures to be raised (`on_failure="raise"`); or a backward pass asked
    for a derivative that the adjoint does not have."""


class Status(IntEnum):
    """How the integration of one sample ended. `advice` is a sentence that says what to do."""

    SUCCESS = 0
    STEADY_STATE = 1
    MAX_STEPS_REACHED = 2
    STEP_SIZE_TOO_SMALL = 3
    NONFINITE = 4

    @property
    def ok(self) -> bool:
        """Whether this is success whatever was asked for; `Solution.success` knows what that was."""
        return self <= Status.STEADY_STATE

    @property
    def advice(self) -> str:
        return _ADVICE[self]


_ADVICE = {
    Status.SUCCESS: "The end of the interval was reached.",
    Status.STEADY_STATE: "The steady state was reached to the tolerance asked for.",
    Status.MAX_STEPS_REACHED: (
        "The step limit was reached before the end of the interval or the tolerance: raise max_steps, loosen rtol and "
        "atol, or take a solver that needs fewer steps on this problem."
    ),
    Status.STEP_SIZE_TOO_SMALL: (
        "The error control asked for a step below the resolution of the floating point type: the problem is stiff or "
        "singular there, or the tolerance is out of reach. Loosen rtol and atol, solve in float64, or use an implicit "
        'method such as solver="scipy" with method="Radau".'
    ),
    Status.NONFINITE: (
        "The state became infinite or NaN: the step is too long for this field (lower dt, or the rate of the field), "
        "the field or its inputs hold non-finite values, or the type of y0 is too narrow for the answer."
    ),
}


@dataclass(frozen=True, repr=False)
class Solution:
    """What `solvers.solve` returns.

    Attributes:
        ts: times of the saved states, (saved,); counted in iterations for relaxation methods. Solvers whose samples
            take steps of their own return (saved, batch) for `save_at="steps"`.
        ys: saved states, (saved, batch, ...).
        y1: the last state, (batch, ...).
        status: a `Status` per sample as an integer, (batch,).
        stats: per sample, (batch,): `num_steps`, `num_accepted`, `num_rejected`, `num_field_evals` as integers and
            `residual`, the largest |dy/dt| at the last state: exact for samples that stopped short of the end of the
            interval, and at the end the mean rate over the last step, which costs no evaluation.
        limit_is_goal: True where a given number of steps was asked for instead of a tolerance (rtol = atol = 0 of a
            relaxation solver): MAX_STEPS_REACHED then says that all of them were taken, and is no failure.
    """

    ts: Tensor
    ys: Tensor
    y1: Tensor
    status: Tensor
    stats: dict[str, Tensor]
    limit_is_goal: bool = False

    @property
    def success(self) -> Tensor:
        """Whether a sample reached what was asked for, (batch,) boolean.

        That is the end of the interval, a steady state, or the number of steps where this was asked for.
        """
        last = Status.MAX_STEPS_REACHED if self.limit_is_goal else Status.STEADY_STATE
        return self.status <= int(last)

    def describe(self) -> str:
        """The distinct outcomes in words, the most frequent first."""
        return "\n".join(f"{count} x {status.name}: {self._advice(status)}" for status, count in self._outcomes())

    def __repr__(self) -> str:
        """Shapes, outcomes and the range of steps taken; never the states themselves."""
        shapes = [f"{name}={tuple(getattr(self, name).shape)}" for name in ("ts", "ys", "y1")]
        return f"Solution({', '.join([*shapes, *self._in_numbers()])})"

    def _in_numbers(self) -> list[str]:
        if torch.compiler.is_compiling():
            return ["traced"]
        try:
            outcomes = " + ".join(f"{count} x {status.name}" for status, count in self._outcomes())
            steps = self.stats["num_steps"].tolist() if "num_steps" in self.stats else []
        except RuntimeError:  # fake, meta and vmapped tensors have no values
            return ["traced"]
        low, high = (min(steps), max(steps)) if steps else (0, 0)
        return [f"status={outcomes or 'none'}", f"num_steps={low if low == high else f'{low}..{high}'}"]

    def _outcomes(self) -> list[tuple[Status, int]]:
        """The distinct statuses and how many samples have them, the most frequent first."""
        codes, counts = self.status.unique(return_counts=True)
        outcomes = sorted(zip(counts.tolist(), codes.tolist(), strict=True), reverse=True)
        return [(Status(code), count) for count, code in outcomes]

    def _advice(self, status: Status) -> str:
        if self.limit_is_goal and status is Status.MAX_STEPS_REACHED:
            return "All the steps that were asked for were taken."
        return status.advice
