"""Whether an attention map lies on the object: precision and recall against true masks, and pictures that have some."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import solvers
from vars_ode.data import fashion_mnist
from vars_ode.robustness.randomness import image_generator

OBJECT = 0.1  # grey value above which a pixel of Fashion-MNIST belongs to the article; its background is 0
NOISE = 0.15  # largest grey value of the background of `two_objects`


def average_precision(maps: Tensor, masks: Tensor) -> Tensor:
    """The area under the precision-recall curve of pixels ranked by a map, (...,), in float64.

    The step-wise area sum_k (R_k - R_(k-1)) P_k of scikit-learn's `average_precision_score`. All pixels of a token have
    its value, and pixels of equal values enter at once, so that a uniform map scores the share of the object's pixels.

    Args:
        maps: (..., rows, columns), a value per token.
        masks: (..., height, width) boolean, the pixels of the object; height and width are multiples of rows and
            columns.

    Raises:
        ValueError: shapes that do not fit, or a mask without an object.
    """
    rows, columns = maps.shape[-2:]
    height, width = masks.shape[-2:]
    if maps.shape[:-2] != masks.shape[:-2] or height % rows or width % columns or masks.dtype != torch.bool:
        raise ValueError(
            f"expected maps (..., rows, columns) and boolean masks (..., height, width) in whole tokens, got "
            f"{tuple(maps.shape)} and {masks.dtype} {tuple(masks.shape)}"
        )
    if not bool(masks.flatten(-2).any(-1).all()):
        raise ValueError("a mask has no object in it; leave such pictures out")
    size = (height // rows) * (width // columns)
    inside = masks.double().unflatten(-1, (columns, -1)).unflatten(-3, (rows, -1)).sum((-3, -1)).flatten(-2)
    values, order = maps.double().flatten(-2).sort(-1, descending=True)
    found = inside.gather(-1, order).cumsum(-1)
    looked = size * torch.arange(1, values.shape[-1] + 1, dtype=torch.float64)
    last = torch.ones_like(values, dtype=torch.bool)  # of its group of equal values
    last[..., :-1] = values[..., :-1] != values[..., 1:]
    areas = []
    for hits, ends in zip(found.flatten(0, -2), last.flatten(0, -2), strict=True):
        recall = hits[ends] / hits[-1]
        areas.append((torch.diff(recall, prepend=recall.new_zeros(1)) * hits[ends] / looked[ends]).sum())
    return torch.stack(areas).view(maps.shape[:-2])


def object_masks(images: Tensor) -> Tensor:
    """The pixels of the article in images of Fashion-MNIST, (batch, 1, height, width) -> (batch, height, width)."""
    return images[:, 0] > OBJECT


def two_objects(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pictures of two small articles on a noisy background, and their true masks.

    Each picture has two embedded test images, shrunk to a half and put into two of the quarters; every background pixel
    is grey by chance, up to `NOISE`. No model was trained on such pictures.

    Returns:
        images (count, 1, 28, 28) in [0, 1] and masks (count, 28, 28), boolean. A picture depends on the seed and on its
        number alone.
    """
    solvers.checks.positive_int("count", count)
    source = fashion_mnist("test").tensors[0]
    side = source.shape[-1] // 2
    small = F.avg_pool2d(source, 2)
    images, masks = [], []
    for number in range(count):
        random = image_generator(seed, "two objects", 0, number)
        chosen = torch.randperm(len(small), generator=random)[:2]
        quarters = torch.randperm(4, generator=random)[:2].tolist()
        picture = torch.zeros(2 * side, 2 * side)
        for article, quarter in zip(small[chosen, 0], quarters, strict=True):
            top, left = side * (quarter // 2), side * (quarter % 2)
            picture[top : top + side, left : left + side] = article
        mask = picture > OBJECT
        background = NOISE * torch.rand(picture.shape, generator=random)
        images.append(torch.where(mask, picture, background)[None])
        masks.append(mask)
    return torch.stack(images), torch.stack(masks)
