"""Small trees of pictures, as data sets of others are laid out."""

from pathlib import Path

import numpy as np
from PIL import Image


def picture(label: int, index: int, side: int = 28, mode: str = "L", classes: int = 4) -> Image.Image:
    """A bar at the place of the class, on noise that is brighter from class to class."""
    random = np.random.default_rng((label, index))
    values = random.integers(0, 80, (side, side, 3))
    width = side // classes
    values += 30 * label
    values[:, label * width : (label + 1) * width] += 60
    return Image.fromarray(values.astype(np.uint8)).convert(mode)


def image_folder(root: Path, per_class: int = 6, classes: int = 4, side: int = 28, mode: str = "L") -> Path:
    """One subfolder of pictures per class."""
    for label in range(classes):
        folder = root / f"class_{label}"
        folder.mkdir(parents=True)
        for index in range(per_class):
            picture(label, index, side, mode, classes).save(folder / f"{index}.png")
    return root
