"""ImageNet-C's corruptions: definitions against independent formulas, recorded statistics, invariants."""

import colorsys
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.random import RandomState
from PIL import Image
from torch import Tensor

from vars_ode.robustness import available, corrupt, corruptions, strengths
from vars_ode.robustness import corruptions_imagenet_c as photos
from vars_ode.robustness import corruptions_weather as weather
from vars_ode.robustness.corruptions import frost_with

pytestmark = pytest.mark.filterwarnings("ignore:.*made for photographs of 224 pixels")
NAMES = available("imagenet-c")
SIDE = 112
every = pytest.mark.parametrize("name", NAMES)
# Nothing but the picture and the severity decides.
DETERMINISTIC = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}
# (mean, standard deviation) of the first scene at severity 3, seed 0: whoever changes these changes the benchmark.
GOLDEN = {
    "gaussian_noise": (0.4293, 0.2867),
    "shot_noise": (0.4146, 0.2944),
    "impulse_noise": (0.434, 0.2883),
    "defocus_blur": (0.424, 0.2225),
    "glass_blur": (0.4293, 0.2285),
    "motion_blur": (0.4207, 0.2244),
    "zoom_blur": (0.4241, 0.2438),
    "snow": (0.6902, 0.2479),
    "frost": (0.5901, 0.2225),
    "fog": (0.3895, 0.1434),
    "brightness": (0.6141, 0.251),
    "contrast": (0.4237, 0.0612),
    "elastic_transform": (0.4114, 0.2479),
    "pixelate": (0.4262, 0.2476),
    "jpeg_compression": (0.4288, 0.25),
}


def scene(seed: int = 0, side: int = SIDE) -> Tensor:
    """(1, 3, side, side) of 8-bit values: a sky, a textured ground, discs and bars, with edges and colours."""
    random = RandomState(seed)
    y, x = np.mgrid[:side, :side] / side
    picture = np.stack([0.35 + 0.4 * y, 0.45 + 0.3 * y, 0.9 - 0.3 * y], -1)
    ground = y > 0.6 + 0.05 * np.sin(9 * x)
    picture[ground] = (0.3, 0.35, 0.15) + 0.12 * random.uniform(-1, 1, (int(ground.sum()), 1))
    for _ in range(6):
        centre, radius, colour = random.uniform(0.15, 0.85, 2), random.uniform(0.05, 0.16), random.uniform(0, 1, 3)
        picture[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2] = colour
    picture[(np.abs(x - 0.5) < 0.2) & (np.sin(60 * x) > 0) & (y > 0.45)] = 0.05
    pixels = torch.from_numpy((255 * picture).clip(0, 255).astype(np.uint8)).permute(2, 0, 1)[None]
    return pixels.float() / 255


SCENES = torch.cat([scene(seed) for seed in range(4)])


@every
def test_constants_are_five(name: str) -> None:
    assert len(strengths(name)) == 5


@every
def test_recorded_statistics(name: str) -> None:
    found = corrupt(SCENES[:1], name, 3)
    assert (float(found.mean()), float(found.std())) == pytest.approx(GOLDEN[name], abs=1e-3)


@every
def test_values_are_of_8_bits_and_hurt(name: str) -> None:
    found = corrupt(SCENES, name, 1)
    assert ((found * 255) - (found * 255).round()).abs().max() < 1e-4
    assert 0.005 < (found - SCENES).abs().mean() < 0.5


@every
def test_distance_grows_with_severity(name: str) -> None:
    """Of elastic_transform within its two and its three severities, whose constants are of two kinds."""
    distances = [float((corrupt(SCENES, name, severity) - SCENES).abs().mean()) for severity in range(1, 6)]
    if name == "elastic_transform":
        assert distances[0] < distances[1]
        assert distances[2] < distances[3] < distances[4]
    elif name == "fog":  # greys as well as brightens: what grows is the loss of contrast
        contrasts = [float(corrupt(SCENES, name, s).diff(dim=-1).abs().mean()) for s in (1, 2)]
        assert contrasts[1] < contrasts[0] < float(SCENES.diff(dim=-1).abs().mean())
    elif name in ("frost", "glass_blur", "snow", "pixelate"):  # whose constants do not rise one by one
        assert distances[0] < distances[2] < distances[4]
    else:
        assert distances == sorted(set(distances))


@every
def test_noise_belongs_to_seed_severity_and_image(name: str) -> None:
    state = torch.get_rng_state()
    np_state = np.random.get_state()[1].copy()  # noqa: NPY002
    together = corrupt(SCENES[:2], name, 2, seed=5, indices=[7, 3])
    assert torch.equal(together[1:], corrupt(SCENES[1:2], name, 2, seed=5, indices=[3]))
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == np_state).all()  # noqa: NPY002
    others = [corrupt(SCENES[1:2], name, 2, seed, [index]) for seed, index in ((5, 4), (6, 3))]
    assert [torch.equal(other, together[1:]) for other in others] == [name in DETERMINISTIC] * 2


@every
@pytest.mark.parametrize("channels", [1, 4])
def test_other_numbers_of_channels(name: str, channels: int) -> None:
    grey = SCENES[:1, :1].expand(-1, channels, -1, -1)[..., 8:]
    assert corrupt(grey, name, 3).shape == (1, channels, SIDE, SIDE - 8)


@every
def test_small_images_are_warned_of(name: str) -> None:
    with pytest.warns(UserWarning, match="made for photographs of 224 pixels, and these images are 28 x 28; for small"):
        corrupt(torch.rand(1, 1, 28, 28), name)


def test_noise_has_the_published_moments() -> None:
    grey = torch.full((1, 3, 200, 200), 102 / 255)
    normal, shot, impulse = (
        corrupt(grey, name, severity)
        for name, severity in (("gaussian_noise", 1), ("shot_noise", 1), ("impulse_noise", 5))
    )
    assert float(normal.std()) == pytest.approx(0.08, rel=0.02)
    assert float(shot.std()) == pytest.approx((0.4 / 60) ** 0.5, rel=0.03)
    for value in (0.0, 1.0):
        assert float((impulse == value).float().mean()) == pytest.approx(0.27 / 2, rel=0.03)


def test_brightness_is_v_of_hsv() -> None:
    picture = RandomState(0).uniform(size=(9, 11, 3)) * 0.9
    picture[0, 0] = 0
    found = photos.brightness(picture, 0.3, RandomState(0))
    for row, column in itertools.product(range(9), range(11)):
        hue, saturation, value = colorsys.rgb_to_hsv(*picture[row, column])
        expected = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.3, 1))
        np.testing.assert_allclose(found[row, column], expected, atol=1e-12)


def test_contrast_and_pixelate_by_their_formulas() -> None:
    mean = SCENES.double().mean((2, 3), keepdim=True)
    expected = ((SCENES.double() - mean) * 0.2 + mean).clamp(0, 1) * 255
    assert (corrupt(SCENES, "contrast", 3) * 255 - expected.floor()).abs().max() < 1.01
    blocks = corrupt(scene(side=120), "pixelate", 2) * 255  # 60 pixels a side, each twice
    assert torch.equal(blocks[..., ::2, ::2], blocks[..., 1::2, 1::2])
    means = (scene(side=120) * 255).unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    assert (blocks[..., ::2, ::2] - means).abs().max() <= 1.0  # rounded along rows, then along columns


def test_a_trail_goes_one_way_and_keeps_the_sum() -> None:
    point = np.zeros((61, 61, 1))
    point[30, 30] = 1
    trail = photos.trail(point, 10, 3, angle=0)[..., 0]
    assert trail.sum() == pytest.approx(1)
    weights = np.exp(-0.5 * (np.arange(21) / 3) ** 2)
    np.testing.assert_allclose(trail[30, 30:9:-1], weights / weights.sum())
    downwards = photos.trail(point, 10, 3, angle=90)[..., 0]
    np.testing.assert_allclose(downwards[30:9:-1, 30], weights / weights.sum())


@pytest.mark.parametrize("constants", strengths("defocus_blur"))
def test_the_disk_of_defocus(constants: tuple[int, float]) -> None:
    point = np.zeros((61, 61, 1))
    point[30, 30] = 1
    disk = photos.defocus_blur(point, constants, RandomState(0))[..., 0]
    assert disk.sum() == pytest.approx(1, abs=0.02)  # the rim of a disk that fills its square is mirrored, as published
    y, x = np.mgrid[-30:31, -30:31]
    assert (disk * (x**2 + y**2)).sum() == pytest.approx(constants[0] ** 2 / 2, rel=0.15)
    np.testing.assert_allclose(disk, disk.T, atol=1e-12)


def test_defocus_against_a_plain_convolution() -> None:
    picture = scene(side=40)[0].permute(1, 2, 0).double().numpy()
    kernel = photos._disk(4, 0.5)
    padded = np.pad(picture, ((8, 8), (8, 8), (0, 0)), mode="reflect")
    expected = sum(kernel[i, j] * padded[i : i + 40, j : j + 40] for i, j in itertools.product(range(17), range(17)))
    np.testing.assert_allclose(photos.defocus_blur(picture, (4, 0.5), RandomState(0)), expected, atol=1e-12)


def test_glass_moves_pixels_from_nearby() -> None:
    """By its distance at a time, a few times where a neighbour was moved before."""
    picture = np.zeros((60, 60, 1))
    picture[:, 30:] = 1
    found = photos.glass_blur(picture, (0.05, 3, 1), RandomState(0))[..., 0]  # next to no blur
    assert set(np.unique(found).round(9)) == {0.0, 1.0}
    assert (found[:, 45:] == 1).all()
    moved = found != picture[..., 0]
    assert moved[4:57, 27:33].mean() > 0.2
    assert not moved[:4].any()  # the rim stays
    assert not moved[:, :15].any()


def test_enlarging_keeps_the_middle() -> None:
    picture = scene(side=60)[0].permute(1, 2, 0).double().numpy()
    np.testing.assert_array_equal(photos.enlarged(picture, 1.0), picture)
    ramp = np.broadcast_to(np.arange(61.0)[:, None, None], (61, 61, 1))
    assert photos.enlarged(ramp, 2.0)[30, 30, 0] == pytest.approx(30, abs=0.6)
    assert np.diff(photos.enlarged(ramp, 2.0)[:, 30, 0]).mean() == pytest.approx(0.5, rel=0.03)


def test_elastic_maps_are_smooth_and_shift_little_without_amplitude() -> None:
    picture = scene()[0].permute(1, 2, 0).double().numpy()
    np.testing.assert_allclose(photos.elastic_transform(picture, (0, 5, 0), RandomState(0)), picture, atol=1e-9)
    shifted = photos.elastic_transform(picture, (0, 5, 3), RandomState(0))
    y = np.broadcast_to(np.arange(SIDE)[:, None, None] / SIDE, (SIDE, SIDE, 1))
    moved = photos.elastic_transform(y, (0, 5, 3), RandomState(0))[20:-20, 20:-20, 0] - y[20:-20, 20:-20, 0]
    assert 0 < np.abs(moved).max() * SIDE < 12
    assert np.abs(np.diff(moved, 2, axis=0)).max() < 1e-9  # affine
    assert np.abs(shifted - picture).mean() > 0.005


def test_plasma_is_a_cloud_of_the_whole_range_and_of_its_size() -> None:
    smooth, rough = (weather.plasma(64, decay, RandomState(3)) for decay in (3.0, 1.4))
    for field in (smooth, rough):
        assert (field.shape, field.min(), field.max()) == ((64, 64), 0, 1)
    jumps = [np.abs(np.diff(field, axis=0)).mean() for field in (smooth, rough)]
    assert jumps[0] < jumps[1] / 2
    assert np.abs(smooth[0] - smooth[-1]).mean() < 3 * jumps[0]  # a torus


def test_drawn_frost_is_icy() -> None:
    ice = np.stack([weather.drawn_frost(SIDE, SIDE, RandomState(seed)) for seed in range(6)])
    assert 0.3 < ice.mean() < 0.45
    assert 0.1 < ice.std() < 0.3
    assert (ice[..., 2] >= ice[..., 0]).all()


def test_frost_of_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no photographs of frost"):
        frost_with(tmp_path)
    for name, value in (("a.png", 255), ("b.jpg", 51)):
        Image.new("RGB", (130, 60), (value,) * 3).save(tmp_path / name)
    monkeypatch.setattr(corruptions, "_CORRUPTIONS", {**corruptions._CORRUPTIONS, "mine": frost_with(tmp_path)})
    dark = torch.zeros(12, 3, SIDE, SIDE)
    found = corrupt(dark, "mine", 1).mean((1, 2, 3)) * 255
    assert set(found.round().int().tolist()) == {int(0.4 * 255), int(0.4 * 51)}
    assert corrupt(dark[:, :1], "mine", 1).shape == (12, 1, SIDE, SIDE)
