"""Attention maps of all VARS layers of a model, over solver time."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import solvers
from vars_ode.layer import ReconstructionLayer
from vars_ode.measuring import evaluation_mode
from vars_ode.models.calls import Call, recorded_calls
from vars_ode.models.layers import require_layers, with_solver

_INSTANT = 1e-9  # a horizon that is 0 to rounding: the map of the initial state


def attention_maps(
    model: nn.Module, images: Tensor, times: Sequence[float] | None = None, match: str | None = None
) -> dict[str, Tensor]:
    """Attention maps by layer, head and solver time: the derivative of output tokens by value tokens.

    At the single step of the softmax dictionary they are the attention matrices of the original model. Each layer gets
    the tokens, masks and rotary embeddings that reach it while the model runs as it is set.

    Args:
        model: a model with VARS layers.
        images: its input, (batch, channels, height, width), or one image without the batch.
        times: horizons, such as (0, 1, 2, 5), with the step that each layer's solver has over its own horizon; 0 gives
            the map of the initial state. None is each layer's own horizon alone.
        match: a glob on module names, such as "blocks.[0-3].attn"; all layers by default.

    Returns:
        (times, batch, heads, tokens, tokens) by the layer's name; a layer without heads, VARS-S, has channels for them.

    Raises:
        ValueError: there is no such layer, or a time is negative.
    """
    for time in times or ():
        solvers.checks.non_negative_number("times", time)
    layers = require_layers(model, match)
    calls, _ = recorded_calls(model, layers, images if images.ndim == 4 else images[None])
    with evaluation_mode(model):
        return {name: _over_time(layer, calls[name], times) for name, layer in layers.items() if name in calls}


def _over_time(layer: ReconstructionLayer, call: Call, times: Sequence[float] | None) -> Tensor:
    if times is None:
        return _map(layer, call)[None]
    solver = layer.solver
    if isinstance(solver, solvers.FixedStepSolver):
        solver = solver.with_step_of(layer.t1)
    elif solver.reaches_equilibrium:
        solver = solvers.Euler(dt=1.0)  # relaxation has no time
    stepping = {time: solvers.Euler(num_steps=1) if time < _INSTANT else solver for time in times}
    return torch.stack(
        [_map(with_solver(layer, stepping[time], t1=max(time, _INSTANT), until=False), call) for time in times]
    )


def _map(layer: ReconstructionLayer, call: Call) -> Tensor:
    """For arguments in the order of the layer's `forward`, whose first are the tokens."""
    named = dict(zip(layer.context_names, call.args[1:], strict=False))
    return layer.attention_map(call.args[0], **named, **call.kwargs).detach()
