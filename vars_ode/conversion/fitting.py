"""What a layer learns beside its projections, fitted to the outputs of the layer that it replaces."""

from collections.abc import Mapping

import torch
from torch import Tensor

from vars_ode.attention import VARSAttention
from vars_ode.measuring import evaluation_mode
from vars_ode.models.calls import Call

ITERATIONS = 20  # of L-BFGS; the loss of most layers no longer moves in its second digit


def relative_difference(layer: VARSAttention, call: Call) -> Tensor:
    """|layer - original| / |original| over all entries of the outputs."""
    output = layer(*call.args, **call.kwargs)
    return torch.linalg.vector_norm(output - call.output) / torch.linalg.vector_norm(call.output)


def fit_learned(layer: VARSAttention, call: Call, iterations: int = ITERATIONS) -> tuple[float, float]:
    """Fit the layer's learned form, K that starts at I, to the original's output; (difference before, after).

    Minimises the relative difference by L-BFGS. Projections and templates stay as they are. A fit that does not help is
    taken back.

    Args:
        layer: the new layer.
        call: a call of the original.
        iterations: of L-BFGS.
    """
    parameters = list(layer.learned.parameters())
    start = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.LBFGS(parameters, max_iter=iterations, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        difference = relative_difference(layer, call)
        for parameter, grad in zip(parameters, torch.autograd.grad(difference, parameters), strict=True):
            parameter.grad = grad
        return difference

    with evaluation_mode(layer):
        before = differs(layer, call)
        with torch.enable_grad():
            optimizer.step(loss)
        after = differs(layer, call)
    for parameter, value in zip(parameters, start, strict=True):
        parameter.grad = None
        if not after < before:
            parameter.data.copy_(value)
    return before, min(before, after) if after == after else before


@torch.no_grad()
def differs(layer: VARSAttention, call: Call) -> float:
    """The relative difference as a number, in evaluation mode."""
    with evaluation_mode(layer):
        return float(relative_difference(layer, call))


def fit_all(layers: Mapping[str, VARSAttention], calls: Mapping[str, Call]) -> dict[str, tuple[float, float]]:
    """(difference before, after) of every layer by name."""
    return {name: fit_learned(layer, calls[name]) for name, layer in layers.items() if name in calls}
