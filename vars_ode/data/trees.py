"""Folders of labelled pictures as they come out of archives: where the classes are, and which label each has."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from timm.data import ImageNetInfo

__all__ = ["Labelled", "files_of", "folders_in", "imagenet_classes", "imagenet_subset", "label_folders", "root_of"]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif"})
_WNID = re.compile(r"n\d{8}")


class Labelled(NamedTuple):
    """A class folder and the label of what is in it."""

    folder: Path
    label: int


def folders_in(path: Path) -> list[Path]:
    """Subfolders in the order of their names, without hidden ones and those that archivers leave behind."""
    try:
        with os.scandir(path) as entries:
            names = [e.name for e in entries if e.is_dir() and not e.name.startswith((".", "__"))]
    except OSError as error:
        raise ValueError(f"{path} is no folder that can be read ({error.strerror}); name the one to read") from error
    return [path / name for name in sorted(names)]


def root_of(path: Path, fits: Callable[[Path], bool], what: str) -> Path:
    """The folder that `fits`: `path`, or one in it, as where an archive holds a folder of its own name.

    Raises:
        ValueError: there is none, or more than one; `what` says what was expected.
    """
    inside = folders_in(path)
    if fits(path):
        return path
    found = [folder for folder in inside if fits(folder)]
    if len(found) == 1:
        return found[0]
    here = ", ".join(folder.name for folder in inside[:5]) or "no folders"
    choice = f"; it holds several: {', '.join(folder.name for folder in found[:8])}; name one of them" if found else ""
    raise ValueError(f"{path} is not {what}{choice or f'; it holds {here}'}")


def label_folders(
    folders: Sequence[Path], num_classes: int | None, where: Path, names: Sequence[str] | None = None
) -> list[Labelled]:
    """Each class folder with its label.

    By the names of the model's classes where these are known; with a model of ImageNet's 1,000 classes by the WordNet
    ids that the folders are called by; otherwise in the order of the names, of which there must be as many as classes.

    Args:
        folders: one per class.
        num_classes: of the model; None labels in the order of the names, unchecked.
        where: the tree, for messages.
        names: the names of all the classes, in the order of the labels, such as those of the training folders.

    Raises:
        ValueError: folders and classes do not fit; the message says which.
    """
    if num_classes == 1000 and names is None and all(folder.name in imagenet_classes() for folder in folders):
        names = tuple(imagenet_classes())
    if names is not None:
        return _by_name(folders, num_classes, where, names)
    if num_classes is not None and len(folders) != num_classes:
        raise ValueError(
            f"{where} holds {len(folders)} class folders ({_few([f.name for f in folders])}) and the model has "
            f"{num_classes} classes; give the data that it was trained for"
        )
    return [Labelled(folder, label) for label, folder in enumerate(folders)]


def _by_name(folders: Sequence[Path], num_classes: int | None, where: Path, names: Sequence[str]) -> list[Labelled]:
    if num_classes is not None and len(names) != num_classes:
        raise ValueError(f"{where} is of {len(names)} classes ({_few(names)}) and the model has {num_classes}")
    label_of = {name: label for label, name in enumerate(names)}
    unknown = [folder.name for folder in folders if folder.name not in label_of]
    if unknown:
        raise ValueError(f"{where} holds the folders {_few(unknown)}, which are no classes: {_few(names)}")
    return [Labelled(folder, label_of[folder.name]) for folder in folders]


def files_of(classes: Sequence[Labelled]) -> list[tuple[Path, int]]:
    """The pictures of class folders with their labels, folder after folder, in the order of their names."""
    found = []
    for folder, label in classes:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not entry.name.startswith(".")]
        found += [(folder / n, label) for n in sorted(names) if os.path.splitext(n)[1].lower() in SUFFIXES]
    return found


def holds_wnids(path: Path) -> bool:
    """Whether folders in it are called as ImageNet's classes are, such as n01440764."""
    return any(_WNID.fullmatch(folder.name) for folder in folders_in(path))


@cache
def imagenet_classes() -> dict[str, int]:
    """The labels of ImageNet's 1,000 classes by WordNet id."""
    return {wnid: label for label, wnid in enumerate(ImageNetInfo("imagenet-1k").label_names())}


@cache
def imagenet_subset(name: str) -> tuple[int, ...]:
    """Which of the 1,000 classes a benchmark of 200 has, rising; by the files that timm ships.

    Args:
        name: "imagenet_a" or "imagenet_r".
    """
    text = (resources.files("timm.data") / "_info" / f"{name}_indices.txt").read_text(encoding="utf-8")
    return tuple(map(int, text.split()))


def _few(names: Sequence[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (f", ... {len(names) - limit} more" if len(names) > limit else "")
