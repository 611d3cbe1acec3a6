"""Backpropagation that recomputes segments of the solve instead of keeping them."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from solvers.adjoints.adjoint import Adjoint
from solvers.checks import positive_int
from solvers.solution import Solution
from solvers.solver import Loop, SegmentedLoop
from solvers.tracing import refuse_transforms
from solvers.tree import tensors


@dataclass(frozen=True)
class Checkpointed(Adjoint):
    """The gradient of `Direct` to rounding, for about one more forward pass and memory O(sqrt(steps)).

    The solve is cut into segments; only the states between them are kept, and each segment is run again when the
    backward pass arrives there (Chen et al. 2016, Training deep nets with sublinear memory cost, arXiv 1604.06174).
    Steps whose sizes were chosen by error control are repeated as they were chosen.

    Args:
        num_segments: how many; by default the square root of the number of steps, which minimises the peak. Where
            error control decides how many steps there are, the n-th segment has n steps.
    """

    num_segments: int | None = None

    def __post_init__(self) -> None:
        if self.num_segments is not None:
            positive_int("num_segments", self.num_segments)

    def solve(self, loop: Loop, y0: Tensor, args: Any) -> Solution:
        if not isinstance(loop, SegmentedLoop):
            raise ValueError(
                "the adjoint 'checkpointed' recomputes steps, which this solver takes out of reach: with 'scipy' use "
                "'continuous' or 'implicit', and with another back end of an adaptive solver 'direct', or the back end "
                "'native'"
            )
        refuse_transforms("the adjoint 'checkpointed'", [y0, *tensors(args)], "use adjoint='direct'")
        carry, saved = loop.start(y0, args), {}
        for first, last in self._segments(loop.num_steps):
            if loop.done(carry):
                break

            def segment(carry: Any, first: int = first, last: int = last) -> tuple[Any, dict[int, Tensor]]:
                return loop.advance(carry, args, first, last)

            carry, states = checkpoint(segment, carry, use_reentrant=False)
            saved.update(states)
        return loop.finish(y0, carry, saved, args)

    def _segments(self, steps: int | None) -> Iterator[tuple[int, int]]:
        """Where they begin and end."""
        if steps is None:
            if self.num_segments is not None:
                raise ValueError(
                    f"num_segments={self.num_segments} divides a known number of steps, which error control does not "
                    "have before the solve: leave it out"
                )
            ends = itertools.accumulate(itertools.count(1), initial=0)
            yield from itertools.pairwise(ends)
        elif steps:
            length = math.ceil(steps / min(steps, self.num_segments or math.isqrt(steps)))
            yield from ((first, min(first + length, steps)) for first in range(0, steps, length))
