"""What each adjoint costs: forward and backward pass of a layer, side by side."""

from dataclasses import dataclass
from functools import partial

import torch

import solvers
from solvers.adjoints import Adjoint
from vars_ode.attention import VARSAttention
from vars_ode.measuring import interleaved

_NESTEROV = solvers.Nesterov(max_steps=300, rtol=1e-3, atol=1e-4)
_SPLITTING = solvers.DouglasRachford(max_steps=300, rtol=1e-3, atol=1e-4)
CASES: dict[str, tuple[solvers.Solver, str | Adjoint]] = {
    "euler-5 direct": (solvers.Euler(dt=1.0), "direct"),
    "euler-5 checkpointed": (solvers.Euler(dt=1.0), "checkpointed"),
    "nesterov implicit": (_NESTEROV, "implicit"),
    "nesterov truncated-1": (_NESTEROV, solvers.Truncated(1)),
    "douglas_rachford implicit": (_SPLITTING, "implicit"),
    "douglas_rachford truncated-5": (_SPLITTING, solvers.Truncated(5)),
}


@dataclass(frozen=True)
class AdjointRow:
    """Milliseconds of a forward and a backward pass, the same over five Euler steps, and the steps of the solve."""

    case: str
    ridge: float
    milliseconds: float
    over_euler: float
    steps: float


def adjoint(repeats: int = 15) -> list[AdjointRow]:
    """50 images of 49 tokens, 64 wide, 4 heads, 32 templates, a learned coupling; equilibria to rtol 1e-3.

    The continuous adjoint is not among them: on these flows, which cannot be integrated backwards, it takes seconds.
    """
    torch.manual_seed(0)
    x = torch.randn(50, 49, 64)
    return [row for ridge in (0.0, 0.05) for row in _rows(x, ridge, repeats)]


def _rows(x: torch.Tensor, ridge: float, repeats: int) -> list[AdjointRow]:
    layers = []
    for solver, adjoint in CASES.values():
        torch.manual_seed(1)
        layers.append(
            VARSAttention(64, 4, num_features=32, learned="coupling", ridge=ridge, solver=solver, adjoint=adjoint)
        )

    def update(layer: VARSAttention) -> None:
        layer.zero_grad()
        layer(x).square().mean().backward()

    times = interleaved([partial(update, layer) for layer in layers], x.device, repeats)
    steps = [float(layer.solve(x).stats["num_steps"].double().mean()) for layer in layers]
    return [
        AdjointRow(case, ridge, time, time / times[0], count)
        for case, time, count in zip(CASES, times, steps, strict=True)
    ]
