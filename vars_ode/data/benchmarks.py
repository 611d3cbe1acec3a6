"""The sets that a model is evaluated on, by name. A new one is a function and a row in `BENCHMARKS`.

Each reads a folder as its archives leave it, nested by one level too, and refuses one whose classes are not the
model's. Labels and predictions are in the numbering of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from timm.data import create_dataset

import solvers
from vars_ode.data.embedded import EMBEDDED_SETS
from vars_ode.data.evaluation_sets import ArrayPictures, DataSetPictures, EmbeddedPictures, EvaluationSet, FilePictures
from vars_ode.data.preprocessing import Preprocessing
from vars_ode.data.trees import (
    Labelled,
    files_of,
    folders_in,
    holds_wnids,
    imagenet_classes,
    imagenet_subset,
    label_folders,
    root_of,
)

__all__ = ["BENCHMARKS", "IMAGENET_C", "TIMM_NAMES", "clean_set", "open_benchmark", "open_timm"]

IMAGENET_C = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
"""The corruptions whose errors make up the mCE, in the order of the paper."""
_EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")  # published beside them, no part of the mCE
_SEVERITIES = (1, 2, 3, 4, 5)
TIMM_NAMES = ("torch/", "hfds/", "tfds/", "wds/")

Reader = Callable[[Path, Preprocessing, int], list[EvaluationSet]]


def clean_set(
    source: str,
    preprocessing: Preprocessing,
    num_classes: int | None = None,
    names: tuple[str, ...] | None = None,
    data_dir: str | None = None,
    split: str = "validation",
) -> EvaluationSet:
    """The clean pictures.

    Args:
        source: "fashion-mnist" or "digits" for the embedded test images; a folder with a subfolder per class; or a data
            set of timm's name, such as "torch/cifar10" or "hfds/...", that is in `data_dir` already.
            A folder stands for `test` in it, or else for `val`, where there is one: in a training `val` chooses
            the epoch where both are there. The classes are then those of `train` beside it, where that is there.
        preprocessing: of the model.
        num_classes: of the model; None does not compare it.
        names: of the model's classes in their order, where it knows them.
        data_dir, split: of a data set of timm's name.

    Raises:
        ValueError: no such folder, or one of other classes.
    """
    if source in EMBEDDED_SETS:
        found = EMBEDDED_SETS[source]
        if num_classes not in (None, len(found.classes)):
            raise ValueError(
                f"{source} has {len(found.classes)} classes and the model {num_classes}; give data of its own classes"
            )
        return EvaluationSet("clean", "clean", 0, partial(EmbeddedPictures, found, preprocessing), source=source)
    if source.startswith(TIMM_NAMES):
        return _of_timm(source, preprocessing, num_classes, data_dir, split)
    folder = Path(source)
    if not folder.is_dir():
        raise ValueError(
            f"there is no folder {folder}; give {' or '.join(EMBEDDED_SETS)}, or a folder with one subfolder per class"
        )
    top = root_of(folder, lambda path: _split(path) is not None or _holds_classes(path), "a tree of class folders")
    place = _split(top) or top
    if names is None and place != top and (top / "train").is_dir():
        names = tuple(path.name for path in folders_in(top / "train"))
        if num_classes == 1000 and set(names) <= imagenet_classes().keys():
            names = None  # a part of ImageNet
    classes = label_folders(folders_in(place), num_classes, place, names)
    return EvaluationSet("clean", "clean", 0, partial(FilePictures, classes, preprocessing), source=str(place))


def _of_timm(
    name: str, preprocessing: Preprocessing, num_classes: int | None, data_dir: str | None, split: str
) -> EvaluationSet:
    data = open_timm(name, data_dir, split, preprocessing.channels)
    classes = getattr(data, "classes", None)
    if classes and num_classes not in (None, len(classes)):
        raise ValueError(f"{name} has {len(classes)} classes and the model {num_classes}")
    opened = partial(DataSetPictures, data, preprocessing)
    return EvaluationSet("clean", "clean", 0, opened, source=f"{name}, {split}")


def open_timm(name: str, data_dir: str | None, split: str, channels: int = 3, **options: Any) -> Any:
    """A split of a data set of `timm.data.create_dataset`, of (PIL image, label) by number.

    Args:
        name: such as "torch/cifar10".
        data_dir: where it lies.
        split: its name.
        channels: 1 for grey.
        options: further ones of `create_dataset`.

    Raises:
        ValueError: it cannot be opened, or is a stream.
    """
    mode = "L" if channels == 1 else "RGB"
    try:
        data = create_dataset(name, root=data_dir, split=split, input_img_mode=mode, **options)
    except (RuntimeError, OSError, ImportError, ValueError, AssertionError) as error:
        raise ValueError(f"timm cannot open the split {split!r} of {name!r} in {data_dir}: {error}") from error
    if not hasattr(data, "__getitem__"):
        raise ValueError(f"{name} is a stream, and its images are needed by number; take a folder of pictures")
    return data


def _split(path: Path) -> Path | None:
    """The part of a tree to measure on."""
    return next((path / name for name in ("test", "val", "validation", "valid") if (path / name).is_dir()), None)


def _holds_classes(path: Path) -> bool:
    """Whether it has subfolders, of which the first ones with anything in them hold pictures."""
    return any(files_of([Labelled(folder, 0)]) for folder in folders_in(path)[:20])


def open_benchmark(name: str, folder: Path, preprocessing: Preprocessing, num_classes: int) -> list[EvaluationSet]:
    """The conditions of a benchmark.

    Args:
        name: out of `BENCHMARKS`.
        folder: where it lies.
        preprocessing: of the model.
        num_classes: of the model.

    Raises:
        ValueError: the folder is not what the benchmark's archive holds, or does not fit the model.
    """
    solvers.checks.one_of("benchmark", name, BENCHMARKS)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder} to read {name} from")
    return BENCHMARKS[name](folder, preprocessing, num_classes)


def _imagenet_c(folder: Path, preprocessing: Preprocessing, num_classes: int) -> list[EvaluationSet]:
    """corruption/severity/class/picture, also within noise/, blur/, weather/ and digital/ as the archives are called.

    The pictures are cropped to 224 pixels already, so that nothing is cut off again for a model of that size.
    """
    places = {path.name: path for top in (folder, *folders_in(folder)) for path in folders_in(top)}
    names = [name for name in (*IMAGENET_C, *_EXTRA) if name in places]
    if not names:
        raise ValueError(
            f"{folder} is not ImageNet-C: no folder of a corruption, such as gaussian_noise/1, is in it or one level "
            "below"
        )
    whole, found = replace(preprocessing, crop_pct=1.0), []
    for name in names:
        for severity in _SEVERITIES:
            place = places[name] / str(severity)
            if place.is_dir():
                classes = label_folders(folders_in(place), num_classes, place)
                found.append(
                    EvaluationSet(
                        "imagenet-c", name, severity, partial(FilePictures, classes, whole), source=str(folder)
                    )
                )
    return found


def _cifar_c(benchmark: str, classes: int, folder: Path, pre: Preprocessing, num_classes: int) -> list[EvaluationSet]:
    """A file per corruption of five times 10,000 pictures, severity after severity, and labels.npy."""
    if num_classes != classes:
        raise ValueError(f"{benchmark} has {classes} classes and the model {num_classes}")
    place = root_of(folder, lambda path: (path / "labels.npy").is_file(), f"{benchmark}, which has a labels.npy")
    labels = _array(place / "labels.npy").astype(np.int64).ravel()
    if labels.min(initial=0) < 0 or labels.max(initial=0) >= classes:
        raise ValueError(f"{place / 'labels.npy'} holds labels up to {labels.max()}, and there are {classes} classes")
    present = {path.stem for path in place.glob("*.npy")} - {"labels"}
    names = [name for name in (*IMAGENET_C, *_EXTRA) if name in present]
    names += sorted(present.difference(names))
    found = []
    for name in names:
        path = place / f"{name}.npy"
        shape, per = _check_array(path, len(labels))
        for severity in range(1, shape[0] // per + 1):
            start = (severity - 1) * per
            own = labels[start : start + per] if len(labels) == shape[0] else labels[:per]
            opened = partial(ArrayPictures, path, own, start, pre)
            found.append(EvaluationSet(benchmark, name, severity, opened, source=str(place)))
    if not found:
        raise ValueError(f"{place} holds labels.npy and no corruption beside it")
    return found


def _array(path: Path) -> NDArray[Any]:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is no array that can be read ({error}); get the file again") from error


def _check_array(path: Path, labels: int) -> tuple[tuple[int, ...], int]:
    """The shape of an array of pictures, and how many there are per severity."""
    array = _array(path)
    if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8:
        raise ValueError(f"{path} holds {array.dtype} {array.shape}; expected uint8 (pictures, height, width, 3)")
    count = array.shape[0]
    if count % len(_SEVERITIES) or labels not in (count, count // len(_SEVERITIES)):
        raise ValueError(
            f"{path} holds {count} pictures for {labels} labels; expected five severities of one number, with a label "
            "for each picture, or for each of one severity"
        )
    return array.shape, count // len(_SEVERITIES)


def _subset(name: str, folder: Path, preprocessing: Preprocessing, num_classes: int) -> list[EvaluationSet]:
    """200 of ImageNet's classes in folders of their WordNet ids, compared among these alone."""
    subset = imagenet_subset(name.replace("-", "_"))
    place = root_of(folder, holds_wnids, f"{name}: folders called by WordNet ids, such as n01498041")
    wnids = list(imagenet_classes())
    names = [wnids[index] for index in subset]
    folders = folders_in(place)
    if num_classes == 1000:
        labelled = [Labelled(f, subset[label]) for f, label in label_folders(folders, None, place, names)]
        chosen: tuple[int, ...] | None = subset
    elif num_classes == len(subset):
        labelled, chosen = label_folders(folders, num_classes, place, names), None
    else:
        raise ValueError(f"{name} is of 200 of ImageNet's 1,000 classes, and the model has {num_classes}")
    return [EvaluationSet(name, name, 0, partial(FilePictures, labelled, preprocessing), chosen, str(place))]


def _sketch(folder: Path, preprocessing: Preprocessing, num_classes: int) -> list[EvaluationSet]:
    place = root_of(folder, holds_wnids, "ImageNet-Sketch: folders called by WordNet ids, such as n01440764")
    classes = label_folders(folders_in(place), num_classes, place)
    opened = partial(FilePictures, classes, preprocessing)
    return [EvaluationSet("imagenet-sketch", "imagenet-sketch", 0, opened, source=str(place))]


def _v2(folder: Path, preprocessing: Preprocessing, num_classes: int) -> list[EvaluationSet]:
    """Folders called by their labels, "0" to "999", which the order of names would put elsewhere: 0, 1, 10, 100."""
    place = root_of(folder, _holds_numbers, 'ImageNetV2: folders called "0" to "999"')
    labelled = [Labelled(path, int(path.name)) for path in folders_in(place) if path.name.isdecimal()]
    beyond = [path.name for path, label in labelled if label >= num_classes]
    if beyond:
        raise ValueError(f"{place} holds the class folder {beyond[0]}, and the model has {num_classes} classes")
    if num_classes != 1000 and len(labelled) != num_classes:
        raise ValueError(f"{place} holds {len(labelled)} classes and the model has {num_classes}")
    opened = partial(FilePictures, labelled, preprocessing)
    return [EvaluationSet("imagenetv2", "imagenetv2", 0, opened, source=str(place))]


def _holds_numbers(path: Path) -> bool:
    folders = folders_in(path)
    return bool(folders) and all(folder.name.isdecimal() for folder in folders)


BENCHMARKS: dict[str, Reader] = {
    "imagenet-c": _imagenet_c,
    "imagenet-a": partial(_subset, "imagenet-a"),
    "imagenet-r": partial(_subset, "imagenet-r"),
    "imagenet-sketch": _sketch,
    "imagenetv2": _v2,
    "cifar-10-c": partial(_cifar_c, "cifar-10-c", 10),
    "cifar-100-c": partial(_cifar_c, "cifar-100-c", 100),
}
