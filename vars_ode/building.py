"""The model and the pictures of a study, from what was said on the command line."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import NamedTuple

import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import solvers
import vars_ode.models  # noqa: F401  (registers the robust vision transformers with timm)
from vars_ode.analysis.problems import layer_inputs
from vars_ode.data import fashion_mnist
from vars_ode.models.layers import ATTENTIONS, build_twin
from vars_ode.study.plan import Settings
from vars_ode.timm_registration import NAMES

DEFAULT_MODEL = "vars-sd-dictionary"


class Subject(NamedTuple):
    """A model in evaluation mode, pictures in [0, 1] for people, and the input that the model takes."""

    name: str
    model: nn.Module
    pictures: Tensor
    inputs: Tensor
    weights: str


def build_subject(
    name: str | None, attention: str | None, checkpoint: Path | None, image: Path | None, count: int, seed: int
) -> Subject:
    """Build the model, fill it, and get its input ready.

    Raises:
        ValueError: a name, file or combination that gives no VARS model.
    """
    solvers.checks.positive_int("images", count)
    torch.manual_seed(seed)
    built, weights = _model(name, attention, checkpoint), "random weights"
    if checkpoint is not None:
        built, weights = _filled(built, checkpoint), f"weights of {checkpoint.name}"
    if built is None:
        raise ValueError("name a model, or give a checkpoint that tells what model it belongs to")
    model = built.eval()
    channels, side, mean, std = _format(model)
    pictures = _pictures(image, count, channels, side)
    inputs = (pictures - mean) / std
    layer_inputs(model, inputs)  # refuses a model without VARS layers, or one that cannot take the pictures
    shown = name or (DEFAULT_MODEL if isinstance(model, VisionTransformer) else type(model).__name__)
    return Subject(shown + (f" with {attention}" if attention else ""), model, pictures, inputs, weights)


def _model(name: str | None, attention: str | None, checkpoint: Path | None) -> nn.Module | None:
    if name is None and checkpoint is not None and attention is None and _is_whole(checkpoint):
        return None  # the file tells what model it belongs to
    if name is None or name in ATTENTIONS:
        if attention is not None:
            raise ValueError(
                f"--attention {attention} goes with a timm model; the small models are named by their attention: one "
                f"of {', '.join(ATTENTIONS)}"
            )
        return build_twin(name or DEFAULT_MODEL, Settings(), seed=torch.initial_seed())
    return _timm_model(name, attention or "vars_d")


def _timm_model(name: str, attention: str) -> nn.Module:
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, [*timm.list_models(), *ATTENTIONS], n=3)
        hint = f" (did you mean {' or '.join(close)}?)" if close else ""
        raise ValueError(
            f"there is no model {name!r}{hint}; name a model of timm.list_models(), or one of {', '.join(ATTENTIONS)}"
        )
    if name.startswith("rvt_"):  # these take attentions by names of their own, vars-s among them
        return timm.create_model(name, pretrained=False, attention=attention.replace("_", "-"))
    registered = NAMES.get(attention.replace("-", "_"))
    if registered is None:
        raise ValueError(f"unknown attention {attention!r}; choose one of {', '.join(NAMES)}")
    try:
        return timm.create_model(name, pretrained=False, attn_layer=registered)
    except TypeError as error:
        raise ValueError(
            f"timm's {name} does not take attn_layer ({error}); choose a plain vision transformer such as "
            "vit_tiny_patch16_224, or rvt_tiny"
        ) from error


def _is_whole(checkpoint: Path) -> bool:
    """Whether a file builds its model itself: it is none of the small twins' plain state dicts."""
    from vars_ode.checkpoints import load_checkpoint

    if not checkpoint.is_file():
        raise ValueError(f"there is no checkpoint {checkpoint}")
    try:
        load_checkpoint(checkpoint, build_twin(DEFAULT_MODEL, Settings(), seed=0))
    except ValueError:
        return True
    return False


def _filled(model: nn.Module | None, checkpoint: Path) -> nn.Module:
    from vars_ode.checkpoints import load_checkpoint

    if not checkpoint.is_file():
        raise ValueError(f"there is no checkpoint {checkpoint}")
    filled, _ = load_checkpoint(checkpoint, model)
    return filled


def _format(model: nn.Module) -> tuple[int, int, Tensor, Tensor]:
    """Channels, side, and the normalisation of a model's input; a model of [0, 1] pictures tells none."""
    stem = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if stem is None:
        raise ValueError(f"{type(model).__name__} has no convolution to take pictures; choose a vision transformer")
    channels = stem.in_channels
    config = getattr(model, "pretrained_cfg", None) or {}
    size = getattr(getattr(model, "patch_embed", None), "img_size", None) or getattr(model, "img_size", None)
    size = size or config.get("input_size", (3, 224, 224))[-1]
    side = int(size if isinstance(size, int) else size[-1])
    normalised = channels == 3 and config.get("mean") is not None
    mean = torch.tensor(config["mean"] if normalised else [0.0] * channels).view(1, -1, 1, 1)
    std = torch.tensor(config["std"] if normalised else [1.0] * channels).view(1, -1, 1, 1)
    return channels, side, mean, std


def _pictures(image: Path | None, count: int, channels: int, side: int) -> Tensor:
    """(pictures, channels, side, side) in [0, 1]: one file, or the first embedded test images of different classes."""
    pictures = _opened(image, channels) if image is not None else _embedded(count)
    if pictures.shape[-2:] != (side, side):
        pictures = F.interpolate(pictures, (side, side), mode="bilinear", antialias=True, align_corners=False)
    if pictures.shape[1] != channels:
        if channels not in (1, 3):
            raise ValueError(f"the model takes {channels} channels, and pictures have 1 or 3")
        pictures = pictures.expand(-1, channels, -1, -1) if channels == 3 else pictures.mean(1, keepdim=True)
    return pictures.clamp(0, 1)


def _embedded(count: int) -> Tensor:
    images, labels = fashion_mnist("test").tensors
    first = [int((labels == label).nonzero()[0, 0]) for label in labels.unique().tolist()]
    order = sorted(first) + [i for i in range(len(labels)) if i not in first]
    return images[order[:count]]


def _opened(path: Path, channels: int) -> Tensor:
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened).convert("L" if channels == 1 else "RGB")
    except FileNotFoundError as error:
        raise ValueError(f"there is no image {path}") from error
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is no picture that can be read ({error})") from error
    picture = ImageOps.fit(picture, (min(picture.size),) * 2)  # the square in the middle
    values = torch.from_numpy(np.array(picture)).float() / 255
    return values.view(1, *values.shape[:2], -1).permute(0, 3, 1, 2)
