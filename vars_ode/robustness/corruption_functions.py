"""The corruptions themselves: pure functions of images, one strength and a random generator.

Each takes ``images`` (batch, channels, height, width), floating-point in [0, 1], its strength and a `torch.Generator`
on the CPU, and returns images of the same shape, which the caller clips to [0, 1]. `corrupt` calls it with one image at
a time, so that an image's noise does not depend on its batch. A length is a fraction of the image's shorter side, so
that one table of strengths serves every image size. Noise is drawn on the CPU whatever the device of the images, so
that the same seed gives the same noise on any device.

Most follow ImageNet-C (Hendrycks and Dietterich, *Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations*, ICLR 2019, arXiv 1903.12261), with strengths made for small images; occlusion and
translation are not part of it.
"""

import math
from functools import lru_cache
from io import BytesIO

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Generator, Tensor


def gaussian_noise(images: Tensor, deviation: float, generator: Generator) -> Tensor:
    """Adds independent normal noise of standard deviation `deviation` (1 = from black to white)."""
    return images + deviation * _normal(images.shape, generator, images)


def shot_noise(images: Tensor, photons: float, generator: Generator) -> Tensor:
    """Poisson counts, of which a white pixel expects `photons`: dark pixels stay dark, fewer photons are noisier."""
    counts = torch.poisson((images * photons).cpu(), generator=generator)
    return counts.to(images.device) / photons


def impulse_noise(images: Tensor, fraction: float, generator: Generator) -> Tensor:
    """Sets a `fraction` of the values to black or white, half and half (salt and pepper)."""
    draw = _uniform(images.shape, generator, images)
    return torch.where(draw < fraction / 2, 0.0, torch.where(draw < fraction, 1.0, images))


def gaussian_blur(images: Tensor, width: float, generator: Generator) -> Tensor:
    """Convolves with a Gaussian whose standard deviation is `width` of the shorter side."""
    return _blur(images, width * min(images.shape[-2:]))


def motion_blur(images: Tensor, length: float, generator: Generator) -> Tensor:
    """Averages each image along a line of `length` times the shorter side, in a random direction of its own."""
    height, width = images.shape[-2:]
    extent = length * min(height, width)
    radius = math.ceil(extent / 2)
    padded = F.pad(images, (radius, radius, radius, radius), mode="replicate")
    blurred = torch.zeros_like(images)
    angles = math.pi * torch.rand(images.shape[0], generator=generator)
    for source, target, angle in zip(padded, blurred, angles.tolist(), strict=True):
        kernel = _line(extent, radius, angle)
        # A sum of shifted images: few weights of the square are not zero, and a convolution would not know that.
        for (row, column), weight in zip(kernel.nonzero().tolist(), kernel[kernel > 0].tolist(), strict=True):
            target.add_(source[:, row : row + height, column : column + width], alpha=weight)
    return blurred


def elastic_transform(images: Tensor, amplitude: float, generator: Generator) -> Tensor:
    """Moves the pixels along a smooth random field whose root mean square is `amplitude` of the shorter side."""
    batch, _, height, width = images.shape
    short = min(height, width)
    # Smooth over 8 % of the side: finer fields tear the contours, coarser ones only shift the object.
    field = _blur(_normal((batch, 2, height, width), generator, images), 0.08 * short)
    norm = field.square().mean((1, 2, 3), keepdim=True).sqrt()
    field = amplitude * short * field / norm.clamp_min(torch.finfo(field.dtype).tiny)
    rows = torch.arange(height, dtype=images.dtype, device=images.device)[:, None] + field[:, 0]
    columns = torch.arange(width, dtype=images.dtype, device=images.device)[None, :] + field[:, 1]
    grid = torch.stack(((2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1), dim=-1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def fog(images: Tensor, density: float, generator: Generator) -> Tensor:
    """Lays `density` times a cloud over the image and rescales to its old maximum, as ImageNet-C does.

    The cloud, in [0, 1] and the same for all channels, is noise summed over octaves with halved amplitude at doubled
    frequency.
    """
    batch, _, height, width = images.shape
    cloud = images.new_zeros(batch, 1, height, width)
    for octave in range(1, 5):
        noise = _normal((batch, 1, 2**octave, 2**octave), generator, images)
        smooth = F.interpolate(noise, size=(height, width), mode="bicubic", align_corners=True)
        cloud = cloud + 0.5**octave * smooth
    low, high = cloud.amin((1, 2, 3), keepdim=True), cloud.amax((1, 2, 3), keepdim=True)
    cloud = (cloud - low) / (high - low).clamp_min(torch.finfo(cloud.dtype).tiny)
    peak = images.amax((1, 2, 3), keepdim=True)
    return (images + density * cloud) * peak / (peak + density)


def brightness(images: Tensor, shift: float, generator: Generator) -> Tensor:
    """Adds `shift` to every value; what exceeds white is lost."""
    return images + shift


def contrast(images: Tensor, factor: float, generator: Generator) -> Tensor:
    """Draws every value towards the image's mean, keeping `factor` of the distance."""
    # torchvision's adjust_contrast does this for one or three channels only.
    return torch.lerp(images.mean((1, 2, 3), keepdim=True), images, factor)


def pixelate(images: Tensor, side: float, generator: Generator) -> Tensor:
    """Averages over squares of `side` times the shorter side: shrinks, and enlarges again by repeating pixels."""
    height, width = images.shape[-2:]
    square = max(1.0, side * min(height, width))
    small = (max(1, round(height / square)), max(1, round(width / square)))
    return F.interpolate(F.interpolate(images, size=small, mode="area"), size=(height, width), mode="nearest")


def jpeg_compression(images: Tensor, quality: float, generator: Generator) -> Tensor:
    """Encodes and decodes as JPEG of the given `quality` (1 to 100).

    Three channels are taken for red, green and blue; any other number is coded channel by channel, as grey images.
    """
    pixels = images.mul(255).round().to(torch.uint8).cpu()
    # (pictures, height, width, 3) or (pictures, height, width), as Pillow has it. torchvision's codec is deprecated.
    pictures = pixels.permute(0, 2, 3, 1) if images.shape[1] == 3 else pixels.flatten(0, 1)
    decoded = torch.from_numpy(np.stack([_through_jpeg(picture, int(quality)) for picture in pictures.numpy()]))
    decoded = decoded.permute(0, 3, 1, 2) if images.shape[1] == 3 else decoded.view(images.shape)
    return decoded.to(images) / 255


def occlusion(images: Tensor, side: float, generator: Generator) -> Tensor:
    """Covers a square of `side` times the shorter side, at a random place, with mid grey.

    Grey and not black, as a black square on a black background would often change nothing.
    """
    batch, _, height, width = images.shape
    length = max(1, round(side * min(height, width)))
    corner = _uniform((batch, 2, 1, 1), generator, images)
    top = (corner[:, :1] * (height - length + 1)).floor()
    left = (corner[:, 1:] * (width - length + 1)).floor()
    row = torch.arange(height, device=images.device)[:, None]
    column = torch.arange(width, device=images.device)[None, :]
    covered = (row >= top) & (row < top + length) & (column >= left) & (column < left + length)
    return torch.where(covered, 0.5, images)


def translation(images: Tensor, length: float, generator: Generator) -> Tensor:
    """Moves the image by `length` times the shorter side along one axis or both, with its edge repeated.

    One of the eight directions is drawn; a diagonal moves both ways, so that what reaches the edge is cut off.
    """
    height, width = images.shape[-2:]
    pixels = max(1, round(length * min(height, width)))
    index = torch.randint(8, (images.shape[0],), generator=generator)
    ways = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1) if (row, column) != (0, 0)]
    padded = F.pad(images, [pixels] * 4, mode="replicate")
    moved = []
    for image, way in zip(padded, index.tolist(), strict=True):
        top, left = (pixels * (1 - part) for part in ways[way])
        moved.append(image[:, top : top + height, left : left + width])
    return torch.stack(moved)


def _normal(shape: tuple[int, ...], generator: Generator, like: Tensor) -> Tensor:
    return torch.randn(shape, generator=generator).to(like)


def _uniform(shape: tuple[int, ...], generator: Generator, like: Tensor) -> Tensor:
    return torch.rand(shape, generator=generator).to(like)


def _line(extent: float, radius: int, angle: float) -> Tensor:
    """(2 radius + 1, 2 radius + 1), weights of sum 1 on a line through the centre, float64 on the CPU."""
    offset = torch.arange(-radius, radius + 1, dtype=torch.float64)
    y, x = offset[:, None], offset[None, :]
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    # One pixel wide with soft edges, so that the kernel varies continuously with angle and length.
    kernel = (extent / 2 + 0.5 - along.abs()).clamp(0, 1) * (1 - across.abs()).clamp(min=0)
    return kernel / kernel.sum()


def _through_jpeg(picture: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    with BytesIO() as file:
        Image.fromarray(picture).save(file, format="JPEG", quality=quality)
        return np.array(Image.open(file))


def _blur(images: Tensor, deviation: float) -> Tensor:
    """Gaussian blur with a standard deviation in pixels; the image is continued by reflection."""
    # The kernel is cut at three deviations, or earlier where the image is too small to be reflected so far.
    radius = min(math.ceil(3 * deviation), min(images.shape[-2:]) - 1)
    height, width = (_blur_matrix(n, deviation, radius, images.dtype, images.device) for n in images.shape[-2:])
    return height @ images @ width.T


@lru_cache(maxsize=32)
def _blur_matrix(size: int, deviation: float, radius: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(size, size), the blur along one axis as a linear map: row i holds the weights of pixel i's neighbours.

    Two such products of images are several times faster than convolutions up to some 256 pixels.
    """
    offset = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.softmax(-0.5 * (offset / deviation).square(), dim=0)
    neighbour = (torch.arange(size)[:, None] + offset.long()).abs()
    neighbour = size - 1 - (size - 1 - neighbour).abs()
    matrix = torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, neighbour, weights.expand(size, -1))
    return matrix.to(device, dtype)
