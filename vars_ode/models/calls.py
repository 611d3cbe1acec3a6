"""What reaches some layers of a model: tokens and the other arguments of the call."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vars_ode.measuring import evaluation_mode


@dataclass(frozen=True)
class Call:
    """One call of a layer.

    Attributes:
        args, kwargs: its arguments; the first are tokens, (batch, tokens, dim).
        output: (batch, tokens, dim_out).
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Tensor


def recorded_calls(model: nn.Module, layers: Mapping[str, nn.Module], images: Tensor) -> tuple[dict[str, Call], Any]:
    """(the first call of each layer, the output of the model) in evaluation mode, without gradients.

    Raises:
        ValueError: the model cannot be run on these images.
    """
    names = {layer: name for name, layer in layers.items()}
    found: dict[str, Call] = {}

    def keep(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        found.setdefault(names[layer], Call(args, kwargs, output))

    handles = [layer.register_forward_hook(keep, with_kwargs=True) for layer in names]
    try:
        with evaluation_mode(model), torch.no_grad():
            output = model(images)
    except Exception as error:  # of whatever kind
        raise ValueError(
            f"the model could not be run on images {tuple(images.shape)} ({type(error).__name__}: {error}), which "
            "tells what its layers get; give it a few of its own as images="
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return found, output
