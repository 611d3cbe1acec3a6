"""A model by name, with weights out of a file."""

from pathlib import Path

import timm
from torch import nn

from vars_ode.checkpoints import folder
from vars_ode.models.construction import construct
from vars_ode.saving.loading import load_checkpoint, num_classes_of


def create_with_weights(
    name: str, weights: Path | None = None, pretrained: bool = False, num_classes: int | None = None
) -> nn.Module:
    """A model of timm's in evaluation mode, with weights of a file, of timm's own, or random ones.

    Args:
        name: of timm's registry.
        weights: safetensors, a file of torch.save, or a folder with model.safetensors in it.
        pretrained: let timm download its weights.
        num_classes: outputs of the head; by default those in the file, where its key is timm's "head.weight", or else
            the model's own.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown model, both sources of weights, or weights that do not fit; the message says which.
    """
    if weights is not None and pretrained:
        raise ValueError("weights are read from a file or downloaded, not both; leave out --weights or --pretrained")
    path = weights / folder.WEIGHTS if weights is not None and weights.is_dir() else weights
    classes = num_classes_of(path) if path is not None and num_classes is None else num_classes
    options = {} if classes is None else {"num_classes": classes}
    if pretrained:
        return timm.create_model(name, pretrained=True, **options).eval()
    model = construct(name, options)
    if path is not None:
        model, _ = load_checkpoint(path, model=model)
    return model.eval()
