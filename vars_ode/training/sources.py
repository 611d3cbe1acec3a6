"""The images of a training: where they come from, how they are split, how they are transformed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import auto_augment, create_transform
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from vars_ode.data import (
    EMBEDDED_SETS,
    TIMM_NAMES,
    EmbeddedSet,
    Preprocessing,
    fitted,
    open_timm,
    readable,
)
from vars_ode.training.config import TrainingConfig
from vars_ode.training.images import Augmentation, augmentation_of
from vars_ode.training.keyed import generator

_VALIDATION = ("val", "validation", "valid")


@dataclass(frozen=True)
class Sources:
    """Data sets of (image, label) without transforms: PIL images, or tensors where they are embedded.

    Attributes:
        train, test: training images, and images that are measured once at the end; None where there are none.
        validation: images that choose the best epoch; None to hold some of the training's out.
        classes: their names, in the order of the labels.
        embedded: the set in memory that they are of; None for pictures in files.
    """

    train: Any
    test: Any
    validation: Any
    classes: tuple[str, ...]
    embedded: EmbeddedSet | None = None


@dataclass(frozen=True)
class Prepared:
    """Data sets as the model takes them."""

    train: Dataset[Any]
    validation: Dataset[Any] | None
    test: Dataset[Any] | None
    augment: Augmentation | None


def open_sources(config: TrainingConfig) -> Sources:
    """The data sets that a configuration names.

    Raises:
        ValueError: no such folder or data set; the message says what was expected.
    """
    if config.data in EMBEDDED_SETS:
        found = EMBEDDED_SETS[config.data]
        return Sources(found.load("train"), found.load("test"), None, found.classes, found)
    if config.data.startswith(TIMM_NAMES):
        return _of_timm(config)
    root = Path(config.data)
    if not (root / "train").is_dir():
        raise ValueError(
            f"{root} has no folder train with one subfolder of pictures per class; give such a folder, "
            f"{' or '.join(EMBEDDED_SETS)}, or a data set of timm's such as 'torch/cifar10' with data_dir"
        )
    train = _folder(root / "train")
    validation = next((_folder(root / name) for name in _VALIDATION if (root / name).is_dir()), None)
    test = _folder(root / "test") if (root / "test").is_dir() else None
    for other in (validation, test):
        if other is not None and other.classes != train.classes:
            extra = sorted(set(other.classes) ^ set(train.classes))
            raise ValueError(f"{other.root} has not the classes of {train.root}: {', '.join(extra[:5])} in one alone")
    if test is None:
        validation, test = None, validation
    return Sources(train, test, validation, tuple(train.classes))


def _folder(path: Path) -> ImageFolder:
    try:
        return ImageFolder(str(path))
    except FileNotFoundError as error:
        raise ValueError(f"{path} has no subfolders of pictures, one per class: {error}") from error


def _of_timm(config: TrainingConfig) -> Sources:
    train, test = (
        open_timm(
            config.data,
            config.data_dir,
            split,
            config.in_chans or 3,
            is_training=split == config.train_split,
            download=config.dataset_download,
        )
        for split in (config.train_split, config.val_split)
    )
    classes = getattr(train, "classes", None) or getattr(getattr(train, "reader", None), "class_to_idx", None)
    if classes is None and config.num_classes is None:
        raise ValueError(f"{config.data} does not tell its classes; give num_classes")
    return Sources(train, test, None, tuple(map(str, classes or range(config.num_classes or 0))))


def prepare(sources: Sources, config: TrainingConfig, preprocessing: Preprocessing) -> Prepared:
    """Held-out images split off, and the transforms of training and measuring put on."""
    train, held_out = _hold_out(sources.train, config.holdout if sources.validation is None else 0.0)
    validation = sources.validation if sources.validation is not None else held_out
    if sources.embedded is not None:
        held = _tensors(validation, preprocessing) if validation is not None else None
        test = _tensors(sources.test, preprocessing)
        augment = None if config.no_aug else augmentation_of(sources.embedded.mirrors)
        return Prepared(_tensors(train, preprocessing), held, test, augment)
    evaluation = _evaluation(preprocessing)
    return Prepared(
        Transformed(train, training_transform(config, preprocessing)),
        Transformed(validation, evaluation) if validation is not None else None,
        Transformed(sources.test, evaluation) if sources.test is not None else None,
        augment=None,
    )


def _hold_out(data: Any, share: float) -> tuple[Any, Any]:
    """Training images and those held out, which are the same in every run, so that runs compare."""
    count = round(share * len(data))
    if count == 0:
        return data, None
    order = torch.randperm(len(data), generator=generator("hold out")).tolist()
    return Subset(data, sorted(order[count:])), Subset(data, sorted(order[:count]))


def _tensors(data: Any, preprocessing: Preprocessing) -> TensorDataset:
    """Embedded images as input of a model."""
    indices = data.indices if isinstance(data, Subset) else slice(None)
    whole: Any = data.dataset if isinstance(data, Subset) else data
    images, labels = (tensor[indices] for tensor in whole.tensors)
    channels, height, width = preprocessing.input_size
    return TensorDataset(preprocessing.normalize(fitted(images, channels, (height, width))), labels)


def training_transform(config: TrainingConfig, preprocessing: Preprocessing) -> Callable[[Any], Tensor]:
    """timm's training transform; in grey, colours are not jittered."""
    grey = preprocessing.input_size[0] == 1
    transform: Callable[[Any], Tensor] = create_transform(
        preprocessing.input_size,
        is_training=True,
        no_aug=config.no_aug,
        scale=config.scale,
        ratio=config.ratio,
        hflip=config.hflip,
        vflip=config.vflip,
        color_jitter=0.0 if grey else config.color_jitter,
        auto_augment=config.aa,
        interpolation=config.train_interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        re_prob=config.reprob,
        re_mode=config.remode,
        re_count=config.recount,
    )
    _keep_a_bit(transform)
    return _Coloured(transform, "L" if grey else "RGB")


def _keep_a_bit(transform: Any) -> None:
    """timm's policies posterize to 0 bits where the magnitude is drawn high, which Pillow 13 refuses: 1 is kept."""
    for step in getattr(transform, "transforms", ()):
        policies = [getattr(step, "ops", ()), *getattr(step, "policy", ())]
        for operation in (operation for policy in policies for operation in policy):
            if getattr(operation, "aug_fn", None) is auto_augment.posterize:
                operation.aug_fn = _posterize


def _posterize(image: Any, bits: int, **options: Any) -> Any:
    return auto_augment.posterize(image, max(bits, 1), **options)


def _evaluation(preprocessing: Preprocessing) -> Callable[[Any], Tensor]:
    return transforms.Compose([preprocessing.transform(), preprocessing.normalize])


@dataclass(frozen=True)
class _Coloured:
    """Grey or colour first: pictures of a folder may be of any mode."""

    transform: Callable[[Any], Tensor]
    mode: str

    def __call__(self, image: Any) -> Tensor:
        return self.transform(image.convert(self.mode))


class Transformed(Dataset[tuple[Tensor, int]]):
    """(transformed image, label) of another data set; `UnreadablePicture` names the file of a damaged one."""

    def __init__(self, data: Any, transform: Callable[[Any], Tensor]) -> None:
        self.data, self.transform = data, transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with readable(_name_of(self.data, index)):
            image, label = self.data[index]
        return self.transform(image), int(label)


def _name_of(data: Any, index: int) -> str:
    """The file of an image, where the data set tells."""
    if isinstance(data, Subset):
        return _name_of(data.dataset, data.indices[index])
    samples = getattr(data, "samples", None)
    if samples is not None:
        return str(samples[index][0])
    reader = getattr(data, "reader", None)  # of timm's data sets
    return f"image {index}" if reader is None else str(reader.filename(index, absolute=True))
