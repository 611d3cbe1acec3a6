"""Backpropagation that recomputes segments of the solve instead of keeping them."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from solvers.adjoints.adjoint import Adjoint
from solvers.checks import positive_int
from solvers.solution import Solution
from solvers.solver import Loop
from solvers.stepping import Carry, Saved, SteppingLoop
from solvers.tracing import refuse_transforms
from solvers.tree import tensors


@dataclass(frozen=True)
class Checkpointed(Adjoint):
    """The gradient of `Direct` to rounding, for about one more forward pass and memory O(sqrt(steps)).

    The solve is cut into segments; only the states between them are kept, and each segment is run again when the
    backward pass arrives there (Chen et al. 2016, Training deep nets with sublinear memory cost, arXiv 1604.06174).

    Args:
        num_segments: how many; by default the square root of the number of steps, which minimises the peak.
    """

    num_segments: int | None = None

    def __post_init__(self) -> None:
        if self.num_segments is not None:
            positive_int("num_segments", self.num_segments)

    def solve(self, loop: Loop, y0: Tensor, args: Any) -> Solution:
        if not isinstance(loop, SteppingLoop):
            raise ValueError(
                "the adjoint 'checkpointed' recomputes steps that are common to the batch, so it works with fixed-step "
                "and relaxation solvers; with an adaptive solver use 'direct' or 'continuous'"
            )
        refuse_transforms("the adjoint 'checkpointed'", [y0, *tensors(args)], "use adjoint='direct'")
        steps = loop.num_steps
        length = math.ceil(steps / min(steps, self.num_segments or math.isqrt(steps))) if steps else 1
        carry, saved = loop.start(y0, args), {}
        for first in range(0, steps, length):
            if loop.done(carry):
                break

            def segment(carry: Carry, first: int = first) -> tuple[Carry, Saved]:
                return loop.advance(carry, args, first, min(first + length, steps))

            carry, states = checkpoint(segment, carry, use_reentrant=False)
            saved.update(states)
        return loop.finish(y0, carry, saved, args)
