"""Backpropagation through the last few steps at an equilibrium."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from solvers.adjoints.adjoint import Adjoint
from solvers.adjoints.implicit import refuse_finite_horizons, trajectory_without_gradient, warn_of_motion
from solvers.bookkeeping import finite_or_failed
from solvers.checks import positive_int, rate_of_state
from solvers.field import iterates
from solvers.solution import Solution
from solvers.solver import Loop


@dataclass(frozen=True)
class Truncated(Adjoint):
    """The implicit gradient with its Neumann series cut off: k steps y <- y + f(y) from a detached equilibrium.

    At an equilibrium of T(y) = y + f(y) the implicit gradient is (dT/dtheta)^T sum_n (J^T)^n dL/dy with J = dT/dy, and
    backpropagation through k steps has the first k terms: Jacobian-free backpropagation at k = 1 (Fung et al., JFB:
    Jacobian-free backpropagation for implicit networks, AAAI 2022), phantom gradients beyond (Geng et al., On training
    implicit models, NeurIPS 2021). The better T contracts, the closer it is to the implicit gradient.
    Memory of k steps, and no linear system.

    The answer is that of the solve, whatever the adjoint. dL/dy0 = 0, as of every equilibrium, and there is no gradient
    of saved states before the last.

    Args:
        steps: k.
    """

    steps: int = 1

    def __post_init__(self) -> None:
        positive_int("steps", self.steps)

    def solve(self, loop: Loop, y0: Tensor, args: Any) -> Solution:
        refuse_finite_horizons(loop, "truncated")
        with torch.no_grad():
            solution = loop.run(y0, args)
        if not torch.is_grad_enabled():
            return solution
        warn_of_motion(solution)
        field: Any = loop.problem.field
        t = torch.tensor(loop.problem.t0, dtype=y0.dtype, device=y0.device)
        y = solution.y1.detach() + 0 * y0  # connected to y0, whose gradient is zero
        for _ in range(self.steps):
            y = field.iterate(y, args) if iterates(field) else y + rate_of_state(field(t, y, args), y)
        y = solution.y1.detach() + (y - y.detach())  # the answer of the solve, with the gradient of the steps
        ys = y[None] if loop.problem.save_at is None else trajectory_without_gradient(solution.ys, y, "truncated")
        return finite_or_failed(replace(solution, ys=ys, y1=y))
