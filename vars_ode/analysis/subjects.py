"""The model and the pictures that a command looks at, from what was said on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from vars_ode.building import SMALL_MODEL, ModelSpec
from vars_ode.checkpoints import CheckpointError
from vars_ode.data import Preprocessing, labelled_pictures, pictures_for
from vars_ode.models import available_attentions, layer_inputs
from vars_ode.representation import tensor_repr
from vars_ode.saving import (
    found_at,
    has_description,
    list_pretrained,
    load_checkpoint,
    num_classes_of,
    pretrained_folder,
)

SHOWN = "fashion-mnist/vars-sd-coupling"
"""The model that is looked at where none is named: trained, and with an energy, which a learned factor has not."""
DEFAULT_ATTENTION = "vars-sd-dictionary"


class Subject(NamedTuple):
    """A model in evaluation mode, pictures in [0, 1] for people, and the input that the model takes."""

    name: str
    model: nn.Module
    pictures: Tensor
    inputs: Tensor
    weights: str

    def __repr__(self) -> str:
        return tensor_repr(self)


def find_subject(
    name: str | None, attention: str | None, checkpoint: Path | None, image: Path | None, count: int, seed: int
) -> Subject:
    """Build or load the model, and get its input ready.

    Args:
        name: a model of timm's, or an attention's name for the small model with it; None for what `checkpoint` holds.
        attention: of a model of timm's; "vars-sd-dictionary" by default.
        checkpoint: a folder or file that was saved, which tells its model; a name out of `vars_ode.list_pretrained`; or
            a state dict alone, which takes a name. Without all three it is the trained `SHOWN`.
        image: a picture; None for embedded ones.
        count: how many of the embedded ones.
        seed: of random weights.

    Raises:
        ValueError: a name, file or combination that gives no VARS model.
    """
    torch.manual_seed(seed)
    if checkpoint is None and name is None and attention is None:
        checkpoint = pretrained_folder(SHOWN)  # None where a model is being made that is to come with the package
    if checkpoint is None:
        spec = _spec(name, attention)
        model, weights, shown = spec.build(), "random weights", f"{spec.model} with {spec.attention}"
    else:
        model, weights = _load(checkpoint, name, attention), f"weights of {found_at(checkpoint).name}"
        shown = _shown(model)
    model.eval()
    preprocessing = Preprocessing.of(model)
    pictures = pictures_for(image, count, preprocessing.channels, preprocessing.size)
    inputs = preprocessing.normalize(pictures)
    layer_inputs(model, inputs)  # refuses a model without VARS layers, or one that cannot take the pictures
    return Subject(shown, model, pictures, inputs, weights)


class Classifier(NamedTuple):
    """A trained model of pictures in [0, 1], and labelled ones."""

    name: str
    model: nn.Module
    data: Dataset[Any]


def find_classifier(checkpoint: Path, source: str, count: int | None) -> Classifier:
    """Load a trained model, and the pictures that it is to be measured on.

    Args:
        checkpoint: a folder or file that was saved, which tells its model, or a name out of `list_pretrained`.
        source: of the pictures, as for `vars_ode.data.labelled_pictures`.
        count: how many of them; all by default.

    Raises:
        ValueError: a checkpoint or pictures that cannot be used.
    """
    name, model = load_model(checkpoint)
    preprocessing = Preprocessing.of(model)
    data = labelled_pictures(source, preprocessing, count)
    return Classifier(name, preprocessing.normalized(model), data)


def load_model(checkpoint: Path) -> tuple[str, nn.Module]:
    """A saved model in evaluation mode, and what it is called.

    Args:
        checkpoint: a folder or file that was saved, which tells its model, or a name out of `list_pretrained`.

    Raises:
        ValueError: it cannot be used; the message says why.
    """
    model = _load(checkpoint, None, None).eval()
    return _shown(model), model


def _load(checkpoint: Path, name: str | None, attention: str | None) -> nn.Module:
    """The model that a file or folder describes, or the named one filled with a state dict that describes none."""
    checkpoint = found_at(checkpoint)
    if not checkpoint.exists():
        known = ", ".join(list_pretrained())
        raise ValueError(
            f"there is no checkpoint {checkpoint}; models that come with the package are {known or 'none'}"
        )
    named = name is not None or attention is not None
    try:
        described = has_description(checkpoint)
    except CheckpointError:
        if not named:
            raise
        described = True
    if named and described:
        raise ValueError("a checkpoint tells what model it belongs to; leave the model and --attention out")
    if named:
        return load_checkpoint(checkpoint, _spec(name, attention, num_classes_of(checkpoint)).build())[0]
    try:
        return load_checkpoint(checkpoint)[0]
    except CheckpointError as error:
        hint = "" if described else "; on the command line, name the model and --attention beside --checkpoint"
        raise ValueError(f"{error}{hint}") from error


def _shown(model: nn.Module) -> str:
    try:
        spec = ModelSpec.of(model)
    except ValueError:  # loaded from a file that does not describe it
        return type(model).__name__
    return f"{spec.model} with {spec.attention or 'its own attention'}"


def _spec(name: str | None, attention: str | None, num_classes: int | None = None) -> ModelSpec:
    if name is not None and name.replace("_", "-") in available_attentions():
        if attention is not None:
            raise ValueError(f"{name!r} and --attention {attention} both name an attention; give one of them")
        name, attention = None, name
    return ModelSpec(name or SMALL_MODEL, attention or DEFAULT_ATTENTION, num_classes=num_classes)
