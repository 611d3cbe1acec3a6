"""What becomes of a picture before a model sees it: size, crop and normalisation, kept with the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, resolve_data_config
from timm.data.transforms_factory import transforms_imagenet_eval
from torch import Tensor, nn
from torchvision import transforms
from torchvision.transforms.functional import pil_to_tensor

import solvers

__all__ = ["Normalized", "Preprocessing"]

_MODES = {1: "L", 3: "RGB"}
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
_CROP_MODES = ("center", "squash", "border")


@dataclass(frozen=True)
class Preprocessing:
    """Pictures as the input of one model, in timm's terms: the shorter side is resized to size / crop_pct, the middle
    is cut out, and values in [0, 1] are normalised to (x - mean) / std.

    Corruptions and attacks work on values in [0, 1]. So `transform` stops there, and `normalized` puts the
    normalisation in front of the model.

    Args:
        input_size: (channels, height, width); 1 channel is grey, 3 are red, green and blue.
        mean, std: per channel, on the [0, 1] scale; (0,) and (1,) where the model takes the values as they are. One
            value serves all channels.
        crop_pct: the part of the resized shorter side that is kept, in (0, 1].
        interpolation: of the resizing: "bicubic", "bilinear", "lanczos", ...
        crop_mode: "center"; "squash" does not keep the ratio of the sides, "border" pads the shorter side.

    Raises:
        ValueError: a value that is none of these.
    """

    input_size: tuple[int, int, int] = (3, 224, 224)
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        if len(self.input_size) != 3:
            raise ValueError(f"input_size is (channels, height, width), got {self.input_size!r}")
        for name, side in zip(("channels", "height", "width"), self.input_size, strict=True):
            solvers.checks.positive_int(name, side)
        for name in ("mean", "std"):
            values = tuple(float(value) for value in getattr(self, name))
            values = values * self.channels if len(values) == 1 else values
            if len(values) != self.channels or not all(map(math.isfinite, values)):
                raise ValueError(f"{name} holds a finite number per channel, {self.channels} of them, got {values}")
            object.__setattr__(self, name, values)
        if min(self.std) <= 0:
            raise ValueError(f"std holds positive numbers, got {self.std}")
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct is a part in (0, 1], got {self.crop_pct!r}")
        solvers.checks.one_of("interpolation", self.interpolation, _INTERPOLATIONS)
        solvers.checks.one_of("crop_mode", self.crop_mode, _CROP_MODES)

    @classmethod
    def of(cls, model: nn.Module) -> Preprocessing:
        """Of what a model says about itself: timm's `pretrained_cfg`, and the size that it was built with.

        A model that says nothing, or whose means are for another number of channels, gets images in [0, 1] as they are.

        Raises:
            ValueError: it has no convolution, whose channels tell those of the pictures.
        """
        stem = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
        if stem is None:
            raise ValueError(f"{type(model).__name__} has no convolution to take pictures; choose a vision transformer")
        channels, known = stem.in_channels, getattr(model, "pretrained_cfg", None) or {}
        found = resolve_data_config(pretrained_cfg={"mean": (0.0,), "std": (1.0,), "crop_pct": 0.875, **known})
        if not {len(found["mean"]), len(found["std"])} <= {1, channels}:
            found |= {"mean": (0.0,), "std": (1.0,)}
        size = getattr(getattr(model, "patch_embed", None), "img_size", None) or getattr(model, "img_size", None)
        size = size or tuple(found["input_size"])[1:]
        sides = (size, size) if isinstance(size, int) else tuple(size)
        return cls(**{**found, "input_size": (channels, int(sides[0]), int(sides[-1]))})

    @property
    def channels(self) -> int:
        return self.input_size[0]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.input_size[1:]

    @property
    def normalizes(self) -> bool:
        return any(self.mean) or any(value != 1 for value in self.std)

    def unnormalized(self, crop_pct: float = 1.0) -> Preprocessing:
        """The same for a model of the values in [0, 1] themselves, by default of whole pictures."""
        return replace(self, mean=(0.0,), std=(1.0,), crop_pct=crop_pct)

    def record_in(self, model: nn.Module) -> None:
        """Tell the model, so that it is saved with it (`save_pretrained`) and `Preprocessing.of` finds it again."""
        values: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        known: Any = getattr(model, "pretrained_cfg", None)
        model.pretrained_cfg = {**(known if isinstance(known, dict) else {}), **values}  # type: ignore[assignment]
        if hasattr(model, "default_cfg"):  # timm's older name of the same dict
            model.default_cfg = model.pretrained_cfg

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """PIL image -> (channels, height, width), float32 in [0, 1], not normalised."""
        if self.channels not in _MODES:
            raise ValueError(f"the model takes {self.channels} channels, and pictures have 1 or 3")
        geometry = transforms_imagenet_eval(
            self.size, self.crop_pct, self.crop_mode, interpolation=self.interpolation, mean=self.mean, normalize=False
        )
        return transforms.Compose([_Mode(_MODES[self.channels]), *geometry.transforms[:-1], _unit_range])

    def normalize(self, images: Tensor) -> Tensor:
        """(images - mean) / std for images (batch, channels, height, width) in [0, 1]."""
        mean, std = (torch.tensor(v, dtype=images.dtype, device=images.device) for v in (self.mean, self.std))
        return (images - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)

    def normalized(self, model: nn.Module) -> nn.Module:
        """A module of images in [0, 1] that normalises them for the model; the model itself where nothing is to be
        done. Parameters, mode and settings are those of the model."""
        return Normalized(model, self.mean, self.std) if self.normalizes else model


class Normalized(nn.Module):
    """A model behind the normalisation of its input, so that it takes images (batch, channels, height, width) in
    [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        parameter = next(model.parameters(), torch.empty(()))
        for name, values in (("mean", mean), ("std", std)):
            tensor = torch.tensor(values, device=parameter.device).view(-1, 1, 1)
            self.register_buffer(name, tensor, persistent=False)
        self.model = model
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        return self.model((images - self.mean) / self.std)


class _Mode:
    """Conversion of a PIL image; a class, since workers that load images are sent the transform."""

    def __init__(self, mode: str) -> None:
        self.mode = mode

    def __call__(self, picture: Image.Image) -> Image.Image:
        return picture.convert(self.mode)


def _unit_range(picture: Image.Image) -> Tensor:
    return pil_to_tensor(picture).float() / 255
