"""How near the truncated gradient of an equilibrium comes to the implicit one, by the number of its terms."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

import solvers
from solvers.adjoints import Adjoint
from vars_ode.attention import VARSAttention

STEPS = (1, 2, 5, 10, 20, 50)
Form = Literal["coupling", "monotone"]
FORMS: tuple[Form, ...] = ("coupling", "monotone")
SOLVER = solvers.DouglasRachford(max_steps=5000, rtol=1e-10, atol=1e-12)


@dataclass(frozen=True)
class TruncatedRow:
    """A learned form and a ridge: the cosine to the implicit gradient, by the number of steps of the truncated one."""

    form: str
    ridge: float
    cosine: dict[int, float]


def truncated(forms: Sequence[Form] = FORMS, num_inputs: int = 20) -> list[TruncatedRow]:
    """Inputs of 49 tokens, 64 wide, 4 heads, 32 templates, in float64; the gradient of all parameters of a layer.

    The learned matrices are away from where they start, and the loss is a random linear function of the output.
    """
    return [_row(form, ridge, num_inputs) for form in forms for ridge in (0.0, 0.05, 0.2)]


def _row(form: Form, ridge: float, num_inputs: int) -> TruncatedRow:
    torch.manual_seed(0)
    layer = VARSAttention(64, 4, num_features=32, learned=form, ridge=ridge, solver=SOLVER, dtype=torch.float64)
    with torch.no_grad():
        for parameter in layer.learned.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    x, weights = torch.randn(2, num_inputs, 49, 64, dtype=torch.float64).unbind()
    exact = _gradient(layer, x, weights, "implicit")
    cosine = {
        steps: float(torch.cosine_similarity(_gradient(layer, x, weights, solvers.Truncated(steps)), exact, dim=0))
        for steps in STEPS
    }
    return TruncatedRow(form, ridge, cosine)


def _gradient(layer: VARSAttention, x: Tensor, weights: Tensor, adjoint: str | Adjoint) -> Tensor:
    layer.adjoint = adjoint
    layer.zero_grad()
    (layer(x) * weights).sum().backward()
    return torch.cat([p.grad.flatten() for p in layer.parameters() if p.grad is not None])
