"""Corruptions, attacks, corruption errors and the evaluator."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from vars_ode.data import fashion_mnist
from vars_ode.robustness import (
    ALEXNET_IMAGENET_C_ERRORS,
    ALEXNET_IMAGENET_CLEAN_ERROR,
    accuracy,
    available,
    corrupt,
    corruption_errors,
    corruptions,
    evaluate,
    fgsm,
    mean_corruption_error,
    pgd,
    register,
    relative_mean_corruption_error,
    strengths,
)

EPS = 8 / 255
# Those whose result does not depend on the seed.
DETERMINISTIC = {
    "small_gaussian_blur",
    "small_brightness",
    "small_contrast",
    "small_pixelate",
    "small_jpeg_compression",
}
every_corruption = pytest.mark.parametrize("name", available("small"))
of_both_families = pytest.mark.parametrize("name", available())
tiny = pytest.mark.filterwarnings("ignore:.*made for photographs of 224 pixels")


@pytest.fixture(scope="module")
def clean() -> tuple[Tensor, Tensor]:
    images, labels = fashion_mnist("test").tensors
    return images[:200], labels[:200]


@pytest.fixture(scope="module")
def linear() -> nn.Module:
    """A linear classifier, trained for a moment on the embedded images."""
    torch.manual_seed(0)
    images, labels = (tensor[:1000] for tensor in fashion_mnist("train").tensors)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.eval()


# ---------------------------------------------------------------- corruptions


def test_enough_corruptions_with_three_severities() -> None:
    assert len(available("small")) >= 9
    assert all(len(strengths(name)) == 3 for name in available("small"))
    assert available() == (*available("small"), *available("imagenet-c"))


@tiny
@of_both_families
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 28, 28), (3, 3, 20, 33), (2, 4, 17, 9), (2, 3, 1, 1), (0, 1, 8, 8)],
    ids=lambda s: "x".join(map(str, s)),
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_shape_dtype_and_range_are_kept(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    images = torch.rand(shape).to(dtype)
    before = images.clone()
    for severity in (1, 2, 3):
        corrupted = corrupt(images, name, severity)
        assert corrupted.shape == images.shape
        assert corrupted.dtype == dtype
        assert corrupted.isfinite().all()
        assert ((corrupted >= 0) & (corrupted <= 1)).all()
    assert torch.equal(images, before)


@every_corruption
def test_distance_to_clean_grows_with_severity(name: str, clean: tuple[Tensor, Tensor]) -> None:
    images, _ = clean
    distances = [float((corrupt(images, name, severity) - images).abs().mean()) for severity in (1, 2, 3)]
    assert 0.004 < distances[0] < distances[1] < distances[2]


@every_corruption
def test_seed_decides_and_global_state_does_not(name: str, clean: tuple[Tensor, Tensor]) -> None:
    images = clean[0][:8]
    state = torch.get_rng_state()
    first = corrupt(images, name, 2, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(corrupt(images, name, 2, seed=3), first)
    assert torch.equal(corrupt(images, name, 2, seed=4), first) == (name in DETERMINISTIC)


@every_corruption
def test_images_of_a_batch_get_their_own_noise(name: str, clean: tuple[Tensor, Tensor]) -> None:
    pair = corrupt(clean[0][:1].expand(2, -1, -1, -1), name, 3)
    assert torch.equal(pair[0], pair[1]) == (name in DETERMINISTIC)


@tiny
@of_both_families
def test_memory_layout_does_not_matter(name: str) -> None:
    images = torch.rand(2, 3, 24, 16)
    transposed = images.transpose(-1, -2).contiguous().transpose(-1, -2)
    assert not transposed.is_contiguous()
    assert torch.equal(corrupt(transposed, name, 2), corrupt(images, name, 2))


@tiny
@of_both_families
def test_images_that_need_gradients_are_taken_as_data(name: str) -> None:
    assert not corrupt(torch.rand(2, 1, 12, 12, requires_grad=True), name).requires_grad


@pytest.mark.parametrize(
    "name", ["small_gaussian_blur", "small_motion_blur", "small_occlusion", "small_pixelate", "small_elastic_transform"]
)
def test_lengths_scale_with_the_image(name: str) -> None:
    """An image of twice the size is hurt about as much: its lengths are fractions of the side."""
    coarse = F.interpolate(fashion_mnist("test").tensors[0][:64], size=(56, 56), mode="bilinear")
    fine = F.interpolate(coarse, size=(112, 112), mode="bilinear")
    small, large = (float((corrupt(x, name, 3) - x).abs().mean()) for x in (coarse, fine))
    assert large == pytest.approx(small, rel=0.25)


def test_closed_forms() -> None:
    images = torch.rand(4, 2, 10, 12, dtype=torch.float64)
    shift, keep = strengths("small_brightness")[1], strengths("small_contrast")[1]
    assert torch.equal(corrupt(images, "small_brightness", 2), (images + shift).clamp(0, 1))
    mean = images.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(corrupt(images, "small_contrast", 2), mean + keep * (images - mean))


def test_noise_has_the_stated_moments() -> None:
    grey = torch.full((1, 1, 200, 200), 0.5, dtype=torch.float64)
    assert float(corrupt(grey, "small_gaussian_noise", 1).std()) == pytest.approx(
        strengths("small_gaussian_noise")[0], rel=0.02
    )
    photons = strengths("small_shot_noise")[0]
    shot = corrupt(0.4 * grey, "small_shot_noise", 1)  # mean 0.2, far enough from 1 that clipping does not matter
    assert float(shot.mean()) == pytest.approx(0.2, rel=0.02)
    assert float(shot.std()) == pytest.approx(math.sqrt(0.2 / photons), rel=0.02)
    impulse = corrupt(grey, "small_impulse_noise", 3)
    for value in (0.0, 1.0):
        assert float((impulse == value).double().mean()) == pytest.approx(
            strengths("small_impulse_noise")[2] / 2, rel=0.1
        )


@pytest.mark.parametrize(
    "name", ["small_gaussian_blur", "small_motion_blur", "small_elastic_transform", "small_pixelate", "small_contrast"]
)
def test_constant_image_stays(name: str) -> None:
    grey = torch.full((3, 1, 28, 28), 0.3, dtype=torch.float64)
    torch.testing.assert_close(corrupt(grey, name, 3), grey)


def test_translation_moves_the_whole_image_one_of_eight_ways() -> None:
    images = torch.zeros(100, 1, 28, 28)
    images[:, :, 14, 14] = 1.0
    moved = corrupt(images, "small_translation", 2)[:, 0]
    way = round(strengths("small_translation")[1] * 28)
    offsets = {tuple(place) for place in (moved.nonzero()[:, 1:] - 14).tolist()}
    assert torch.equal(moved.sum((1, 2)), torch.ones(100))
    assert offsets == {(r, c) for r in (-way, 0, way) for c in (-way, 0, way) if (r, c) != (0, 0)}
    assert way > 2  # beyond the shifts that models are trained with


def test_occlusion_covers_one_square() -> None:
    covered = corrupt(torch.zeros(50, 1, 20, 30), "small_occlusion", 3) == 0.5
    side = round(strengths("small_occlusion")[2] * 20)
    assert (covered.any(-1).sum(-1) == side).all()
    assert (covered.any(-2).sum(-1) == side).all()
    assert (covered.sum((1, 2, 3)) == side**2).all()


def test_motion_blur_spreads_along_a_line() -> None:
    point = torch.zeros(20, 1, 41, 41, dtype=torch.float64)
    point[..., 20, 20] = 1
    blurred = corrupt(point, "small_motion_blur", 3)
    torch.testing.assert_close(blurred.sum((1, 2, 3)), torch.ones(20, dtype=torch.float64))
    offset = torch.arange(41, dtype=torch.float64) - 20
    yy = (blurred * offset[:, None] ** 2).sum((1, 2, 3))
    xx = (blurred * offset**2).sum((1, 2, 3))
    xy = (blurred * offset[:, None] * offset).sum((1, 2, 3))
    spread = torch.linalg.eigvalsh(torch.stack([yy, xy, xy, xx], -1).view(-1, 2, 2))
    # A uniform line of length l has the variance l^2 / 12 along itself and next to none across.
    along = (strengths("small_motion_blur")[2] * 41) ** 2 / 12
    torch.testing.assert_close(spread[:, 1], torch.full((20,), along, dtype=torch.float64), rtol=0.2, atol=0)
    assert (spread[:, 0] < 0.4).all()


def test_register_adds_one_by_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corruptions, "_CORRUPTIONS", dict(corruptions._CORRUPTIONS))
    register("darker", lambda images, strength, generator: images - strength, (0.1, 2.0))
    images = torch.full((1, 1, 2, 2), 0.5)
    torch.testing.assert_close(corrupt(images, "darker", 1), images - 0.1)
    assert not corrupt(images, "darker", 2).any()
    assert available()[-1] == "darker"
    with pytest.raises(ValueError, match=r"from 1 \(mild\) to 2"):
        corrupt(images, "darker", 3)
    with pytest.raises(ValueError, match="'small_fog', which is taken"):
        register("small_fog", lambda images, strength, generator: images, (1,))
    with pytest.raises(ValueError, match="no strengths"):
        register("empty", lambda images, strength, generator: images, ())
    with pytest.raises(ValueError, match="'fog', which is taken"):
        register("fog", lambda images, strength, generator: images, (1,))
    register("smaller", lambda images, strength, generator: images[:, :, 1:], (1,))
    with pytest.raises(ValueError, match="keep the shape"):
        corrupt(images, "smaller")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(1, 28, 28), r"shape \(1, 28, 28\); expected \(batch, channels, height, width\)"),
        (torch.zeros(1, 0, 8, 8), r"shape \(1, 0, 8, 8\)"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), "Divide 8-bit images by 255"),
        (torch.full((1, 1, 8, 8), 1.5), r"values from 1.5 to 1.5; expected \[0, 1\]"),
        (torch.full((1, 1, 8, 8), -0.5), "Undo the normalisation"),
        (torch.full((1, 1, 8, 8), float("nan")), "NaN"),
        (torch.full((1, 1, 8, 8), float("inf")), "inf"),
        ([[0.5]], "type list"),
    ],
)
def test_wrong_images_are_refused(images: Tensor, message: str, linear: nn.Module) -> None:
    with pytest.raises(ValueError, match=message):
        corrupt(images, "small_fog")
    with pytest.raises(ValueError, match=message):
        fgsm(linear, images, torch.zeros(1, dtype=torch.int64))


def test_wrong_name_and_severity() -> None:
    images = torch.rand(1, 1, 8, 8)
    with pytest.raises(ValueError, match="unknown corruption 'rain'; expected one of small_gaussian_noise"):
        corrupt(images, "rain")
    for severity in (0, 4, -1, 1.0, True, "1"):
        with pytest.raises(ValueError, match="expected an integer from 1"):
            corrupt(images, "small_fog", severity)


# ---------------------------------------------------------------- attacks


def _two_class(weight: Tensor) -> nn.Module:
    """Logits (0, w.x): the gradient of the cross entropy of class 0 has the sign of w everywhere."""
    layer = nn.Linear(weight.numel(), 2, bias=False, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([torch.zeros_like(weight), weight]))
    return nn.Sequential(nn.Flatten(), layer)


@pytest.mark.parametrize("attack", [fgsm, partial(pgd, step_size=EPS / 2)], ids=["fgsm", "pgd"])
def test_attack_on_a_linear_model_moves_each_pixel_by_eps(attack) -> None:
    weight = torch.randn(36, dtype=torch.float64)
    weight[:3] = 0  # a pixel without influence stays under FGSM
    images = 0.2 + 0.6 * torch.rand(5, 1, 6, 6, dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 1, 1])
    sign = torch.where(labels == 0, 1, -1).view(-1, 1, 1, 1) * weight.sign().view(1, 1, 6, 6)
    for targeted in (False, True):
        adversarial = attack(_two_class(weight), images, labels, eps=EPS, targeted=targeted)
        moved = (adversarial - images)[..., weight.view(6, 6) != 0]
        expected = (EPS * sign * (-1 if targeted else 1))[..., weight.view(6, 6) != 0]
        torch.testing.assert_close(moved, expected)
    still = (fgsm(_two_class(weight), images, labels, eps=EPS) - images)[..., weight.view(6, 6) == 0]
    assert not still.any()


@pytest.mark.parametrize("random_start", [True, False])
def test_pgd_stays_in_the_ball_and_beats_fgsm(
    random_start: bool, clean: tuple[Tensor, Tensor], linear: nn.Module
) -> None:
    images, labels = clean
    before = images.clone()
    single = fgsm(linear, images, labels, eps=EPS)
    many = pgd(linear, images, labels, eps=EPS, step_size=EPS / 4, num_steps=10, random_start=random_start)
    loss = {}
    for name, attacked in {"clean": images, "fgsm": single, "pgd": many}.items():
        assert (attacked - images).abs().max() <= EPS + 1e-6
        assert attacked.min() >= 0
        assert attacked.max() <= 1
        with torch.no_grad():
            loss[name] = float(F.cross_entropy(linear(attacked), labels))
    assert loss["clean"] + 0.1 < loss["fgsm"] <= loss["pgd"]
    assert torch.equal(images, before)


def test_pgd_is_deterministic_in_its_seed(clean: tuple[Tensor, Tensor], linear: nn.Module) -> None:
    images, labels = clean[0][:4], clean[1][:4]
    attack = partial(pgd, linear, images, labels, eps=EPS, step_size=EPS / 10, num_steps=1)
    state = torch.get_rng_state()
    assert torch.equal(attack(seed=1), attack(seed=1))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(attack(seed=1), attack(seed=2))
    assert torch.equal(attack(seed=1, random_start=False), attack(seed=2, random_start=False))


def test_eps_zero_returns_the_images(clean: tuple[Tensor, Tensor], linear: nn.Module) -> None:
    images, labels = clean
    assert torch.equal(fgsm(linear, images, labels, eps=0), images)
    assert torch.equal(pgd(linear, images, labels, eps=0), images)


class _Moody(nn.Module):
    """A linear model with a dropout, a frozen BatchNorm, and a record of the mode in which it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.linear = nn.BatchNorm2d(1), nn.Dropout(0.5), nn.Linear(36, 3)
        self.train()
        self.norm.eval()
        self.modes: set[bool] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.modes.add(self.training)
        return self.linear(self.drop(self.norm(x).flatten(1)))


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_attacks_leave_model_and_caller_as_they_were(attack, guard) -> None:
    model = _Moody()
    model.linear.weight.grad = torch.ones_like(model.linear.weight)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with guard():
        images, labels = torch.rand(2, 1, 6, 6), torch.tensor([0, 2])
        adversarial = attack(model, images, labels)
    assert not torch.equal(adversarial, images)
    assert not adversarial.requires_grad
    assert model.modes == {False}
    assert model.training
    assert model.drop.training
    assert not model.norm.training
    assert torch.equal(model.linear.weight.grad, torch.ones_like(model.linear.weight))
    assert model.linear.bias.grad is None
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])


def test_mode_is_restored_after_an_error() -> None:
    model = _Moody()
    with pytest.raises(RuntimeError):
        fgsm(model, torch.rand(1, 1, 5, 5), torch.tensor([0]))
    assert model.training
    assert not model.norm.training


class _Function(nn.Module):
    """A linear layer on whatever a function makes of the flattened images."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.linear = function, nn.Linear(36, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.function(x.flatten(1)))


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_missing_gradient_is_an_error_and_zero_gradient_a_warning(attack) -> None:
    images, labels = torch.rand(2, 1, 6, 6), torch.tensor([0, 2])
    with pytest.raises(RuntimeError, match="no gradient reaches the images"):
        attack(_Function(torch.Tensor.detach), images, labels)
    constant = _Function(torch.Tensor.detach).requires_grad_(False)
    with pytest.raises(RuntimeError, match="no gradient reaches the images"):
        attack(constant, images, labels)
    with pytest.warns(RuntimeWarning, match="exactly zero on the whole batch"):
        attack(_Function(torch.round), images, labels)
    with pytest.raises(RuntimeError, match="gradient to the images is not finite"):
        attack(_Function(lambda x: (x - x).sqrt()), images, labels)
    with pytest.raises(RuntimeError, match="returned NaN logits for 2 of 2"):
        attack(_Function(lambda x: x / 0 * 0), images, labels)


def test_normalising_model_is_wrapped() -> None:
    """With y = (x - mean) / std inside, the attack moves x, not y, by eps."""
    model = nn.Sequential(_Function(lambda x: (x - 0.3) / 0.2))
    images = 0.2 + 0.6 * torch.rand(2, 1, 6, 6)
    moved = fgsm(model, images, torch.tensor([0, 2]), eps=EPS) - images
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, EPS))


def test_wrong_attack_arguments(linear: nn.Module) -> None:
    images, labels = torch.rand(2, 1, 28, 28), torch.tensor([0, 1])
    for wrong in (labels[:1], labels.float(), F.one_hot(labels, 10), [0, 1]):
        with pytest.raises(ValueError, match=r"expected class indices, torch.int64 \(2,\)"):
            fgsm(linear, images, wrong)
    for eps in (-0.1, float("nan"), float("inf"), "0.1", None):
        with pytest.raises(ValueError, match="expected a radius"):
            pgd(linear, images, labels, eps=eps)
    with pytest.raises(ValueError, match="step_size=0"):
        pgd(linear, images, labels, step_size=0)
    for steps in (0, 1.5, float("inf"), float("nan"), "5"):
        with pytest.raises(ValueError, match="num_steps"):
            pgd(linear, images, labels, num_steps=steps)
    for use in (partial(pgd, linear, images, labels), partial(corrupt, images, "small_gaussian_noise", 1)):
        with pytest.raises(ValueError, match="expected a whole number as seed, got 'x'"):
            use(seed="x")


# ---------------------------------------------------------------- corruption errors


def test_mean_corruption_error_closed_form() -> None:
    errors = {"a": [0.1, 0.3], "b": [0.5]}
    baseline = {"b": [0.4], "a": [0.4, 0.4]}
    assert mean_corruption_error(errors, baseline) == pytest.approx(100 * (0.4 / 0.8 + 0.5 / 0.4) / 2)
    # (0.4 - 2 * 0.05) / (0.8 - 2 * 0.2) = 0.75 and (0.5 - 0.05) / (0.4 - 0.2) = 2.25
    assert relative_mean_corruption_error(errors, baseline, 0.05, 0.2) == pytest.approx(150)
    assert relative_mean_corruption_error(errors, baseline, 0, 0) == mean_corruption_error(errors, baseline)
    percent = {name: [100 * value for value in values] for name, values in errors.items()}
    assert mean_corruption_error(percent, percent) == pytest.approx(100)


def test_alexnet_is_the_unit_of_mce() -> None:
    assert len(ALEXNET_IMAGENET_C_ERRORS) == 15
    assert mean_corruption_error(ALEXNET_IMAGENET_C_ERRORS, ALEXNET_IMAGENET_C_ERRORS) == pytest.approx(100)
    # The paper's table 1 gives, in percent, the clean error 43.5 and for the noises 88.6, 89.4 and 92.3.
    rounded = [
        round(100 * ALEXNET_IMAGENET_C_ERRORS[f"{kind}_noise"][0], 1) for kind in ("gaussian", "shot", "impulse")
    ]
    assert rounded == [88.6, 89.4, 92.3]
    assert ALEXNET_IMAGENET_CLEAN_ERROR == 0.435


@pytest.mark.parametrize(
    ("errors", "baseline", "message"),
    [
        ({}, {}, "at least one corruption"),
        ({"a": [1]}, {"b": [1]}, r"only in the baseline: \['b'\], only in the errors: \['a'\]"),
        ({"a": [1, 2]}, {"a": [1]}, "2 errors and 1 in the baseline"),
        ({"a": []}, {"a": []}, "0 errors"),
        ({"a": [0.1]}, {"a": [0.0]}, "needs a positive number"),
        ({"a": [-0.1]}, {"a": [0.1]}, "has the error -0.1"),
        ({"a": [float("nan")]}, {"a": [0.1]}, "has the error nan"),
        ({"a": 0.1}, {"a": 0.1}, "a sequence of errors"),
    ],
)
def test_wrong_errors(errors, baseline, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mean_corruption_error(errors, baseline)


def test_relative_error_needs_a_baseline_that_is_hurt() -> None:
    with pytest.raises(ValueError, match="needs a positive number"):
        relative_mean_corruption_error({"a": [0.3]}, {"a": [0.2]}, 0.1, 0.2)
    with pytest.raises(ValueError, match="clean error"):
        relative_mean_corruption_error({"a": [0.3]}, {"a": [0.2]}, -0.1, 0.1)


# ---------------------------------------------------------------- evaluation


class _FirstPixel(nn.Module):
    """Class 1 where the first pixel is above one half, class 0 elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        value = x[:, 0, 0, 0]
        return torch.stack([torch.full_like(value, 0.5), value], dim=1)


def test_accuracy_closed_form() -> None:
    images = torch.tensor([0.0, 0.2, 0.9, 1.0, 0.6]).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    labels = torch.tensor([0, 1, 1, 1, 0])
    data = TensorDataset(images, labels)
    for given in (data, DataLoader(data, batch_size=2), [(images[:1], labels[:1]), (images[1:], labels[1:])]):
        assert accuracy(_FirstPixel(), given) == pytest.approx(0.6)
    assert accuracy(_FirstPixel(), data, device="cpu", batch_size=2) == pytest.approx(0.6)
    # brightness lifts no more than strengths(...)[2] = 0.12: not enough to turn 0.2 into class 1
    (row,) = evaluate(_FirstPixel(), data, ["small_brightness"], severities=[3])
    assert row == {"condition": "small_brightness", "severity": 3, "accuracy": pytest.approx(0.6)}


def test_rows_cover_every_condition(linear: nn.Module) -> None:
    data = TensorDataset(*(tensor[:64] for tensor in fashion_mnist("test").tensors))
    rows = list(evaluate(linear, data, batch_size=32))
    expected = [("clean", 0), *((name, s) for name in available("small") for s in (1, 2, 3)), ("fgsm", 0), ("pgd", 0)]
    assert [(row["condition"], row["severity"]) for row in rows] == expected
    assert all(set(row) == {"condition", "severity", "accuracy"} and 0 <= row["accuracy"] <= 1 for row in rows)
    assert rows[0]["accuracy"] == accuracy(linear, data)
    assert rows == list(evaluate(linear, data, batch_size=32))
    errors = corruption_errors(rows)
    assert tuple(errors) == available("small")
    assert errors["small_fog"][2] == pytest.approx(1 - rows[1 + 3 * available().index("small_fog") + 2]["accuracy"])
    assert mean_corruption_error(errors, errors) == pytest.approx(100)
    with pytest.raises(ValueError, match="twice"):
        corruption_errors([*rows, *rows])


class _Recorder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.clone())
        return x.flatten(1)[:, :2]


def test_every_model_sees_the_same_images_and_batches_differ() -> None:
    data = TensorDataset(torch.full((4, 1, 8, 8), 0.5), torch.zeros(4, dtype=torch.int64))
    first, second, other = _Recorder(), _Recorder(), _Recorder()
    for model, seed in ((first, 0), (second, 0), (other, 1)):
        torch.rand(3)  # the global state does not enter
        list(evaluate(model, data, ["small_gaussian_noise"], [1], batch_size=2, seed=seed))
    assert all(torch.equal(a, b) for a, b in zip(first.seen, second.seen, strict=True))
    assert not torch.equal(first.seen[0], first.seen[1])
    assert not any(torch.equal(a, b) for a in first.seen for b in other.seen)


def test_attacks_can_be_exchanged(linear: nn.Module, clean: tuple[Tensor, Tensor]) -> None:
    data = TensorDataset(*clean)
    strong = {"strong": partial(fgsm, eps=EPS), "none": lambda model, images, labels: images}
    rows = {
        row["condition"]: row["accuracy"] for row in evaluate(linear, data, ["clean", "strong", "none"], attacks=strong)
    }
    assert rows["strong"] + 0.1 < rows["clean"] == rows["none"]
    with pytest.raises(ValueError, match=r"attacks named \['small_fog'\]"):
        evaluate(linear, data, attacks={"small_fog": fgsm})


def test_progress_and_modes() -> None:
    model = _Moody()
    data = TensorDataset(torch.rand(5, 1, 6, 6), torch.zeros(5, dtype=torch.int64))
    calls: list[tuple[str, int, int]] = []
    rows = evaluate(
        model, data, ["clean", "small_fog", "pgd"], [2], batch_size=3, progress=lambda *call: calls.append(call)
    )
    for _ in rows:
        assert model.training
        assert not model.norm.training
    assert calls == [
        ("clean", 0, 3),
        ("clean", 0, 5),
        ("small_fog", 2, 3),
        ("small_fog", 2, 5),
        ("pgd", 0, 3),
        ("pgd", 0, 5),
    ]
    assert model.modes == {False}
    assert all(parameter.grad is None for parameter in model.parameters())


def test_evaluation_refuses_what_it_cannot_judge(linear: nn.Module) -> None:
    data = TensorDataset(torch.rand(2, 1, 6, 6), torch.tensor([0, 1]))
    empty = TensorDataset(torch.zeros(0, 1, 6, 6), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="got no images"):
        accuracy(linear, empty)
    with pytest.raises(ValueError, match="got no images"):
        next(evaluate(linear, empty))
    # These are refused at once, before the first row is asked for.
    with pytest.raises(ValueError, match="unknown condition 'rain'; expected one of clean, small_gaussian_noise"):
        evaluate(linear, data, ["clean", "rain"])
    with pytest.raises(ValueError, match=r"severity 4 for 'small_fog'"):
        evaluate(linear, data, ["small_fog"], [4])
    with pytest.raises(ValueError, match="sequence of names"):
        evaluate(linear, data, "clean")
    with pytest.raises(ValueError, match=r"evaluation on 'clean' got images with values"):
        next(evaluate(linear, TensorDataset(data.tensors[0] - 1, data.tensors[1])))
    with pytest.raises(RuntimeError, match="returned NaN logits for 1 of 2"):
        accuracy(_Function(lambda x: x / x.new_tensor([[0.0], [1.0]]) * 0), data)
    with pytest.raises(RuntimeError, match="infinite logits"):
        accuracy(nn.Sequential(nn.Flatten(), nn.Threshold(2, torch.inf)), data)
    with pytest.raises(RuntimeError, match=r"expected logits of shape \(2, classes\)"):
        accuracy(nn.Identity(), data)
    with pytest.raises(ValueError, match="expected class indices"):
        accuracy(nn.Flatten(), TensorDataset(data.tensors[0], torch.rand(2, 10)))
