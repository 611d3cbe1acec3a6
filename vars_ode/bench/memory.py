"""Peak memory of the adjoints, by the number of steps."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

import solvers
from vars_ode.attention import VARSAttention
from vars_ode.bench.problem import reconstruction_args
from vars_ode.fields import ProximalFlow
from vars_ode.measuring import check_device, peak_bytes

ADJOINTS = ("direct", "checkpointed", "continuous", "implicit")


@dataclass(frozen=True)
class MemoryRow:
    """Peak memory of a forward and backward pass under one adjoint, in KiB.

    Attributes:
        measured: a solve alone, or a layer.
        kib: by the number of steps.
        growth: from the fewest to the most of them.
        over_direct: at 40 steps, over five under "direct".
    """

    measured: str
    adjoint: str
    kib: dict[int, float]
    growth: float
    over_direct: float | None = None


def memory(steps: Sequence[int] = (5, 20, 40, 80, 320), images: int = 8, device: str = "cpu") -> list[MemoryRow]:
    """Peak memory of a solve with its gradient under each adjoint, and of training a layer, in float32.

    Direct, checkpointed and continuous divide the horizon t1 = 5 of a solve into that many Euler steps: a contractive
    flow cannot be integrated backwards over a long horizon. Implicit takes as many iterations of ISTA, and the cost of
    its backward pass does not depend on them. The layer, on images of 196 tokens, 192 wide, 6 heads, 64 features,
    takes as many steps of dt = 1; its projections and templates are part of what it needs.

    Args:
        steps: numbers of them.
        images: of the layer's input.
        device: where; on "cpu" the bytes of tensors are counted, on "cuda" the allocator says.
    """
    where = check_device(device)
    rows = [_row("solve", name, steps, lambda name, count: _solve(name, count, where)) for name in ADJOINTS]
    for name in ("direct", "checkpointed", "implicit"):
        row = _row("layer", name, steps, lambda name, count: _layer(name, count, images, where))
        if {5, 40} <= set(steps):
            direct = row if name == "direct" else next(row for row in rows if row.measured == "layer")
            row = replace(row, over_direct=row.kib[40] / direct.kib[5])
        rows.append(row)
    return rows


def _row(measured: str, name: str, steps: Sequence[int], peak: Callable[[str, int], int]) -> MemoryRow:
    kib = {count: peak(name, count) / 1024 for count in steps}
    return MemoryRow(measured, name, kib, kib[steps[-1]] / kib[steps[0]])


def _solver(adjoint: str, steps: int) -> solvers.Solver:
    if adjoint == "implicit":
        return solvers.FixedPoint(max_steps=steps, rtol=0.0, atol=0.0)
    return solvers.Euler(num_steps=steps)


def _solve(adjoint: str, steps: int, device: torch.device) -> int:
    args = reconstruction_args(tokens=49, features=32, head_dim=16, dtype=torch.float32)
    drive, gram = (part.to(device).requires_grad_() for part in (args.drive, args.dense_gram))
    args = args._replace(drive=drive, gram=gram, rate=args.rate.to(device), sparsity=args.sparsity.to(device))

    def run() -> None:
        y0 = torch.zeros_like(drive)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", solvers.SolverWarning)  # of the continuous adjoint, on a contractive field
            y1 = solvers.solve(ProximalFlow(), y0, 5.0, _solver(adjoint, steps), args, adjoint=adjoint).y1
            torch.autograd.grad(y1.square().sum(), (drive, gram))

    return peak_bytes(run, device)


def _layer(adjoint: str, steps: int, images: int, device: torch.device) -> int:
    torch.manual_seed(0)
    layer = VARSAttention(192, 6, num_features=64, t1=float(steps), solver=_solver(adjoint, steps), adjoint=adjoint)
    layer = layer.to(device)
    x = torch.randn(images, 196, 192).to(device)
    return peak_bytes(lambda: layer(x).square().mean().backward(), device)
