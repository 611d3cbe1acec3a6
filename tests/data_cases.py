"""Trees of made pictures as the archives of benchmarks leave them: a new source is a row of CASES."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vars_ode.data.trees import imagenet_classes, imagenet_subset

WNIDS = list(imagenet_classes())


def put(path: Path, value: int, size: tuple[int, int] = (40, 32)) -> None:
    """A picture of one grey value, so that it tells which it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value,) * 3).save(path)


def class_tree(root: Path, names: Sequence[str], each: int = 2, suffix: str = ".png") -> Path:
    """A folder per name; the grey value of a picture is 10 times the place of its folder, plus its own place."""
    for place, name in enumerate(names):
        for index in range(each):
            put(root / name / f"picture{index}{suffix}", 10 * place + index)
    return root


def imagenet_c(
    root: Path, names: Sequence[str] = ("fog", "gaussian_noise"), severities: Sequence[int] = (1, 5)
) -> Path:
    for name in names:
        for severity in (1, 5):
            class_tree(root / name / str(severity), WNIDS[:3], suffix=".JPEG")
    return root


def imagenet_c_by_archive(root: Path) -> Path:
    imagenet_c(root / "noise", ["gaussian_noise"])
    imagenet_c(root / "weather", ["fog"])
    return root


def cifar_c(root: Path, names: Sequence[str] = ("gaussian_noise", "fog"), per: int = 4, classes: int = 10) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    labels = np.arange(per) % classes
    np.save(root / "labels.npy", np.tile(labels, 5))
    for name in names:
        values = np.repeat(np.arange(5 * per, dtype=np.uint8), 32 * 32 * 3).reshape(5 * per, 32, 32, 3)
        np.save(root / f"{name}.npy", values)
    return root


@dataclass(frozen=True)
class DataCase:
    """A source, how to make it, and what is expected of it.

    Args:
        benchmark: its name; "clean" for `clean_set`.
        make: makes the tree in a folder and returns what to name.
        num_classes: of a model that fits.
        conditions: (condition, severity) in order.
        labels: of the first condition's pictures.
        classes: how many outputs are compared; None for all.
    """

    benchmark: str
    make: Callable[[Path], Path]
    num_classes: int
    conditions: tuple[tuple[str, int], ...]
    labels: tuple[int, ...]
    classes: int | None = None


A, R = imagenet_subset("imagenet_a"), imagenet_subset("imagenet_r")
BOTH_C = (("gaussian_noise", 1), ("gaussian_noise", 5), ("fog", 1), ("fog", 5))
CIFAR = tuple((name, severity) for name in ("gaussian_noise", "fog") for severity in range(1, 6))
LETTERS, FEW = ("a", "b", "c"), (0, 0, 1, 1, 2, 2)
CASES = {
    "folder": DataCase("clean", lambda p: class_tree(p, LETTERS), 3, (("clean", 0),), FEW),
    "folder with val": DataCase("clean", lambda p: class_tree(p / "val", LETTERS).parent, 3, (("clean", 0),), FEW),
    "folder in a folder": DataCase("clean", lambda p: class_tree(p / "x", LETTERS).parent, 3, (("clean", 0),), FEW),
    "part of ImageNet": DataCase(
        "clean", lambda p: class_tree(p, [WNIDS[7], WNIDS[3]]), 1000, (("clean", 0),), (3, 3, 7, 7)
    ),
    "imagenet-c": DataCase("imagenet-c", imagenet_c, 1000, BOTH_C, FEW),
    "imagenet-c by archive": DataCase("imagenet-c", imagenet_c_by_archive, 1000, BOTH_C, FEW),
    "imagenet-c of three classes": DataCase("imagenet-c", imagenet_c, 3, BOTH_C, FEW),
    "imagenet-a": DataCase(
        "imagenet-a",
        lambda p: class_tree(p, [WNIDS[i] for i in A[:2]]),
        1000,
        (("imagenet-a", 0),),
        (6, 6, 11, 11),
        200,
    ),
    "imagenet-r": DataCase(
        "imagenet-r",
        lambda p: class_tree(p / "imagenet-r", [WNIDS[i] for i in R[:2]]).parent,
        1000,
        (("imagenet-r", 0),),
        (1, 1, 2, 2),
        200,
    ),
    "imagenet-r of 200 classes": DataCase(
        "imagenet-r", lambda p: class_tree(p, [WNIDS[i] for i in R]), 200, (("imagenet-r", 0),), (0, 0, 1, 1)
    ),
    "imagenet-sketch": DataCase(
        "imagenet-sketch",
        lambda p: class_tree(p / "sketch", WNIDS[5:7]).parent,
        1000,
        (("imagenet-sketch", 0),),
        (5, 5, 6, 6),
    ),
    "imagenetv2": DataCase(
        "imagenetv2",
        lambda p: class_tree(p / "imagenetv2-matched-frequency-format-val", [str(i) for i in range(12)]).parent,
        1000,
        (("imagenetv2", 0),),
        (0, 0, 1, 1, 10, 10, 11, 11, 2, 2),
    ),
    "cifar-10-c": DataCase("cifar-10-c", lambda p: cifar_c(p / "CIFAR-10-C").parent, 10, CIFAR, (0, 1, 2, 3)),
    "cifar-100-c": DataCase("cifar-100-c", lambda p: cifar_c(p, classes=100), 100, CIFAR, (0, 1, 2, 3)),
}
