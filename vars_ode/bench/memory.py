"""Peak memory of the adjoints, by the number of steps."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch

import solvers
from solvers.adjoints import Adjoint
from vars_ode.bench.problem import reconstruction_args
from vars_ode.fields import ProximalFlow
from vars_ode.measuring import PeakMemory


@dataclass(frozen=True)
class MemoryRow:
    """Peak memory of a solve and its gradient, in KiB, by number of steps; `growth` is the ratio of last to first."""

    adjoint: str
    kib: dict[int, float]
    growth: float


def memory(steps: Sequence[int] = (5, 20, 80, 320)) -> list[MemoryRow]:
    """Peak memory of a solve with its gradient under each adjoint, in float32.

    Direct, checkpointed and continuous divide the horizon t1 = 5 into that many Euler steps: a contractive flow cannot
    be integrated backwards over a long horizon. Implicit takes as many iterations of ISTA, and the cost of its backward
    pass does not depend on them.
    """
    rows = []
    for name in ("direct", "checkpointed", "continuous", "implicit"):
        kib = {count: _peak(name, count) / 1024 for count in steps}
        rows.append(MemoryRow(name, kib, kib[steps[-1]] / kib[steps[0]]))
    return rows


def _peak(adjoint: str, steps: int) -> int:
    args = reconstruction_args(tokens=49, features=32, head_dim=16, dtype=torch.float32)
    leaves = tuple(part.requires_grad_() for part in (args.drive, args.dense_gram))
    solver: solvers.Solver = solvers.Euler(num_steps=steps)
    if adjoint == "implicit":
        solver = solvers.FixedPoint(max_steps=steps, rtol=0.0, atol=0.0)
    choice: Adjoint = solvers.adjoints.get(adjoint)
    with PeakMemory() as counter:
        y0 = torch.zeros_like(args.drive)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", solvers.SolverWarning)  # of the continuous adjoint, on a contractive field
            y1 = solvers.solve(ProximalFlow(), y0, 5.0, solver, args, adjoint=choice).y1
            torch.autograd.grad(y1.square().sum(), leaves)
    return counter.peak
