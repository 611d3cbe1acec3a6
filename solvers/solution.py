"""The answer of a solve: states, a status per sample, statistics."""

from dataclasses import dataclass
from enum import IntEnum

from torch import Tensor


class SolverWarning(UserWarning):
    """A solve did not do what was asked of it and went on with what it had."""


class SolverError(RuntimeError):
    """A solve failed and the caller asked for failures to be raised (`on_failure="raise"`)."""


class Status(IntEnum):
    """How the integration of one sample ended. `advice` is a sentence that says what to do."""

    SUCCESS = 0
    STEADY_STATE = 1
    MAX_STEPS_REACHED = 2
    STEP_SIZE_TOO_SMALL = 3
    NONFINITE = 4

    @property
    def ok(self) -> bool:
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
        "or the field or its inputs hold non-finite values."
    ),
}


@dataclass(frozen=True)
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
    """

    ts: Tensor
    ys: Tensor
    y1: Tensor
    status: Tensor
    stats: dict[str, Tensor]

    @property
    def success(self) -> Tensor:
        """Whether a sample reached what was asked for, (batch,) boolean."""
        return self.status <= int(Status.STEADY_STATE)

    def describe(self) -> str:
        """The distinct outcomes in words, the most frequent first."""
        codes, counts = self.status.unique(return_counts=True)
        outcomes = sorted(zip(counts.tolist(), codes.tolist(), strict=True), reverse=True)
        return "\n".join(f"{count} x {Status(code).name}: {Status(code).advice}" for count, code in outcomes)
