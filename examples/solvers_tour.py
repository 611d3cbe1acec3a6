"""Every solver on one layer: its error to the equilibrium, its cost, and the error of its gradient.

    python examples/solvers_tour.py

Columns: relative error of the output to the equilibrium's; field evaluations per image; wall time of the forward
pass; relative error of the gradient (of the mean squared output, in the weights, through the steps) to the
equilibrium's; peak memory of forward and backward pass together.

Fixed-step and adaptive solvers stop at t1 = 20, so their error is mostly the distance of that state from the
equilibrium, not inaccuracy.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

import solvers
from vars_ode import VARSAttention
from vars_ode.bench import table
from vars_ode.measuring import peak_bytes, timed


@dataclass(frozen=True)
class Row:
    """One solver."""

    solver: str
    error_to_equilibrium: float
    evaluations: float
    milliseconds: float
    gradient_error: float | None
    kib: float | None


def output_and_gradient(layer: VARSAttention, tokens: Tensor) -> tuple[Tensor, Tensor]:
    output = layer(tokens)
    gradients = torch.autograd.grad(output.square().mean(), list(layer.parameters()))
    return output.detach(), torch.cat([gradient.flatten() for gradient in gradients])


def relative(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).norm() / reference.norm())


def measure(layer: VARSAttention, tokens: Tensor, name: str, reference: tuple[Tensor, Tensor]) -> Row:
    """Solve the layer by one solver. The weights stay the same."""
    layer.solver = solvers.Scipy(method="RK45") if name == "scipy" else name
    with torch.no_grad():
        output, milliseconds = timed(lambda: layer(tokens), tokens.device)
        evaluations = layer.solve(tokens).stats["num_field_evals"].double().mean().item()
    gradient_error = kib = None
    if name != "scipy":  # it integrates outside of torch, where no gradient flows
        found: list[tuple[Tensor, Tensor]] = []
        kib = peak_bytes(lambda: found.append(output_and_gradient(layer, tokens)), tokens.device) / 1024
        gradient_error = relative(found[0][1], reference[1])
    return Row(name, relative(output, reference[0]), evaluations, milliseconds, gradient_error, kib)


def main(num_tokens: int = 49, dim: int = 32) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layer = VARSAttention(dim, num_heads=2, dictionary="dynamic", sparsity=0.3, rate="power", t1=20.0).double()
    tokens = torch.randn(2, num_tokens, dim, dtype=torch.float64)
    layer.solver = solvers.DouglasRachford(rtol=0.0, atol=1e-10, max_steps=5000)
    layer.adjoint = "implicit"
    reference = output_and_gradient(layer, tokens)
    layer.adjoint = "direct"
    print(table([measure(layer, tokens, name, reference) for name in solvers.available()]))


if __name__ == "__main__":
    main()
