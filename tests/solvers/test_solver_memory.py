"""Memory that a backward pass needs, by the number of steps: the largest sum of live tensors on the way."""

from typing import Any

import pytest
import torch
from solver_problems import Pull, slope
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import solvers

STEPS = [20, 80, 320]


class PeakBytes(TorchDispatchMode):
    """Follows every storage that an operation returns for as long as something holds on to it."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[Any, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                reference = StorageWeakRef(tensor.untyped_storage())
                self.live[reference.cdata] = (reference, tensor.untyped_storage().nbytes())
        self.live = {key: entry for key, entry in self.live.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return result


def peak(adjoint: str, steps: int) -> int:
    leaves = Pull.leaves(batch=64, n=4)  # few features: temporaries of the field's product are n times a state
    field, y0, args = Pull(4), leaves["y0"], Pull.args(leaves)
    solver: Any = solvers.Euler(num_steps=steps)
    options: dict[str, Any] = {"t1": 0.01 * steps}
    if adjoint == "implicit":
        solver, options = solvers.FixedPoint(max_steps=steps, rtol=0, atol=0), {}
    with PeakBytes() as memory:
        solvers.solve(field, y0, solver=solver, args=args, adjoint=adjoint, **options).y1.sum().backward()
    return memory.peak


@pytest.mark.filterwarnings("ignore::solvers.SolverWarning")
@pytest.mark.parametrize(
    ("adjoint", "lowest", "highest"), [("direct", 0.9, 1.1), ("checkpointed", 0.1, 0.6), ("implicit", -0.05, 0.05)]
)
def test_growth_of_memory_with_steps(adjoint: str, lowest: float, highest: float) -> None:
    peaks = [peak(adjoint, steps) for steps in STEPS]
    assert lowest <= slope([float(n) for n in STEPS], [float(bytes) for bytes in peaks]) <= highest, peaks


def test_checkpointed_takes_a_fraction_of_the_memory() -> None:
    assert peak("checkpointed", 320) < peak("direct", 320) / 6


def adaptive_peak(adjoint: str, end: float) -> tuple[int, int]:
    """Bytes, and steps."""
    y0 = Pull.leaves(batch=64, n=2)["y0"].requires_grad_()
    spin = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    with PeakBytes() as memory:
        solution = solvers.solve(lambda t, y, args: y @ args, y0, end, "dopri5", spin, adjoint=adjoint)
        solution.y1.sum().backward()
    return memory.peak, int(solution.stats["num_steps"].max())


def test_growth_of_memory_with_steps_of_chosen_sizes() -> None:
    peaks, steps = zip(*(adaptive_peak("checkpointed", end) for end in (4.0, 12.0, 36.0)), strict=True)
    assert steps[-1] > 6 * steps[0]
    assert 0.2 <= slope([float(n) for n in steps], [float(bytes) for bytes in peaks]) <= 0.7, (steps, peaks)
    assert peaks[1] < adaptive_peak("direct", 12.0)[0] / 2
