"""Which conversion a living model went through, read off its layers."""

from torch import nn

from vars_ode.conversion.convert import attention_layers
from vars_ode.layer import ReconstructionLayer
from vars_ode.models.reading import EVERY, Attention, attention_of


def conversion_of(model: nn.Module) -> dict[str, Attention]:
    """The attentions of the VARS layers in a converted model, by name; under "*" where it is one in all layers.

    Raises:
        ValueError: a layer that no name stands for.
    """
    found: dict[str, Attention] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, ReconstructionLayer):
            attention = attention_of(layer)
            if attention is None:
                raise ValueError(f"this model cannot be described: no name stands for {name}, a {type(layer).__name__}")
            options = {key: value for key, value in attention[1].items() if key not in ("attn_head_dim", "gated")}
            found[name] = (attention[0], options)
    first = next(iter(found.values()))
    every = all(attention == first for attention in found.values())
    every = every and all(reason is not None for _, reason in attention_layers(model).values())
    return {EVERY: first} if every else found
