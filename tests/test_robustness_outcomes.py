"""Randomness belongs to images: batch size, order and processes change nothing. Outcomes, their merging, and names."""

import copy
import warnings
from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset
from torchvision.transforms.v2 import functional as TF
from workers import forkserver

from vars_ode.data import IMAGENET_C, fashion_mnist
from vars_ode.robustness import (
    Outcome,
    accuracy,
    available,
    corrupt,
    corruption_errors,
    corruptions,
    evaluate,
    fgsm,
    outcomes,
    pgd,
    strengths,
)
from vars_ode.robustness.randomness import image_generator

EPS = 8 / 255
COUNT = 70
ATTACKS = {"fgsm": partial(fgsm, eps=EPS), "pgd": partial(pgd, eps=EPS, step_size=EPS / 2, num_steps=2)}
# Every corruption is compared pixel by pixel below; here a few suffice.
CONDITIONS = ("clean", "small_gaussian_noise", "small_motion_blur", "small_occlusion", "fgsm", "pgd")
NOISY = ("small_gaussian_noise", "small_shot_noise", "small_impulse_noise", "small_elastic_transform", "small_fog")
every_corruption = pytest.mark.parametrize("name", available("small"))


def _data(count: int = COUNT) -> TensorDataset:
    return TensorDataset(*(tensor[:count] for tensor in fashion_mnist("test").tensors))


def _linear() -> nn.Module:
    """A linear classifier whose templates are the mean images of the classes: some way above chance."""
    images, labels = (tensor[:500] for tensor in fashion_mnist("train").tensors)
    means = torch.stack([images[labels == label].mean(0).flatten() for label in range(10)])
    layer = nn.Linear(784, 10)
    with torch.no_grad():
        layer.weight.copy_(means)
        layer.bias.copy_(-means.square().sum(1) / 2)
    return nn.Sequential(nn.Flatten(), layer).eval()


@pytest.fixture(scope="module")
def linear() -> nn.Module:
    return _linear()


def _outcomes(model: nn.Module, data, **options) -> list[Outcome]:
    return list(outcomes(model, data, CONDITIONS, [2], attacks=ATTACKS, seed=5, **options))


def _same(left: Outcome, right: Outcome) -> bool:
    return left.row == right.row and all(
        torch.equal(getattr(left, name), getattr(right, name)) for name in ("indices", "labels", "predictions")
    )


# ---------------------------------------------------------------- images, not batches


@every_corruption
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_corruption_does_not_depend_on_batch_mates(name: str, dtype: torch.dtype) -> None:
    images = _data().tensors[0].to(dtype)
    whole = corrupt(images, name, 2, seed=3)
    for size in (7, 64):
        parts = zip(images.split(size), torch.arange(COUNT).split(size), strict=True)
        assert torch.equal(torch.cat([corrupt(part, name, 2, 3, places) for part, places in parts]), whole)
    order = torch.randperm(COUNT)
    assert torch.equal(corrupt(images[order], name, 2, 3, indices=order), whole[order])
    assert torch.equal(corrupt(images[order], name, 2, 3, indices=order.tolist()), whole[order])


def test_pgd_does_not_depend_on_batch_mates(linear: nn.Module) -> None:
    model, (images, labels) = copy.deepcopy(linear).double(), _data().tensors
    attack = partial(pgd, model, eps=EPS, step_size=EPS / 20, num_steps=2, seed=3)
    images = images.double()
    whole = attack(images, labels)
    assert not torch.equal(whole, attack(images, labels, indices=range(1, COUNT + 1)))
    for size in (7, 64):
        parts = zip(images.split(size), labels.split(size), torch.arange(COUNT).split(size), strict=True)
        attacked = torch.cat([attack(image, label, indices=places) for image, label, places in parts])
        assert torch.equal(attacked, whole)


def test_images_of_one_batch_start_pgd_apart() -> None:
    images = torch.full((2, 1, 6, 6), 0.5)
    started = pgd(nn.Flatten(), images, torch.tensor([0, 0]), eps=0.1, step_size=1e-6, num_steps=1)
    assert (started[0] - started[1]).abs().max() > 0.02


def test_outcomes_do_not_depend_on_batch_size_or_order(linear: nn.Module) -> None:
    found = _outcomes(linear, _data(), batch_size=7)
    assert [(outcome.condition, outcome.severity) for outcome in found] == [
        ("clean", 0),
        *((name, 2) for name in CONDITIONS[1:4]),
        ("fgsm", 0),
        ("pgd", 0),
    ]
    assert all(torch.equal(outcome.indices, torch.arange(COUNT)) for outcome in found)
    for data in (_data(), DataLoader(_data(), batch_size=13)):
        assert all(map(_same, found, _outcomes(linear, data, batch_size=64)))
    backwards = outcomes(linear, _data(), CONDITIONS[::-1], [3, 2], attacks=ATTACKS, seed=5)
    kept = [outcome for outcome in backwards if outcome.severity != 3]
    assert all(map(_same, found, reversed(kept)))


def test_rows_of_every_condition_do_not_depend_on_batch_size(linear: nn.Module) -> None:
    few, many = (list(evaluate(linear, _data(), severities=[1, 3], batch_size=size)) for size in (7, 64))
    assert few == many
    assert len({row["accuracy"] for row in few}) > 5


def test_order_of_the_images_does_not_matter(linear: nn.Module) -> None:
    order = torch.randperm(COUNT)
    shuffled = _outcomes(linear, Subset(_data(), order.tolist()), indices=order, batch_size=9)
    assert all(map(_same, shuffled, _outcomes(linear, _data())))


def test_an_attack_without_indices_is_called_without(linear: nn.Module) -> None:
    seen = []

    def own(model: nn.Module, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        seen.extend(indices.tolist())
        return images

    attacks = {"own": own, "none": lambda model, images, labels: images}
    own_row, none_row = evaluate(linear, _data(5), ["own", "none"], attacks=attacks, batch_size=2, indices=range(3, 8))
    assert own_row["accuracy"] == none_row["accuracy"]
    assert seen == [3, 4, 5, 6, 7]


# ---------------------------------------------------------------- which noise is whose


@pytest.mark.parametrize("name", NOISY)
def test_seeds_and_images_never_share_noise(name: str) -> None:
    """One image under several seeds and as several places of a data set: no two results are equal."""
    image = _data(1).tensors[0]
    keys = list(product((-1, 0, 1, 2, 2**32, 2**40), (0, 1, 2, 1_000_003)))
    found = {corrupt(image, name, 2, seed, [index]).numpy().tobytes() for seed, index in keys}
    assert len(found) == len(keys)


def _first_numbers(seed: int, condition: str, severity: int, index: int) -> bytes:
    return torch.rand(8, generator=image_generator(seed, condition, severity, index)).numpy().tobytes()


def test_conditions_severities_seeds_and_images_never_share_a_generator() -> None:
    keys = list(product((0, 1, 2, 10, 11), (*available(), "pgd"), (0, 1, 2, 3), (0, 1, 2, 10, 11)))
    assert len({_first_numbers(*key) for key in keys}) == len(keys)


@pytest.mark.parametrize("name", NOISY)
def test_corruptions_draw_from_the_generator_of_their_name_and_severity(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def spy(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
        drawn.append(torch.rand(8, generator=generator).numpy().tobytes())
        return images

    monkeypatch.setitem(corruptions._CORRUPTIONS, name, corruptions.Corruption(spy, (1, 2, 3)))
    corrupt(torch.zeros(2, 1, 2, 2), name, 2, seed=4, indices=[8, 6])
    corrupt(torch.zeros(1, 1, 2, 2), name, 3)
    assert drawn == [_first_numbers(4, name, 2, 8), _first_numbers(4, name, 2, 6), _first_numbers(0, name, 3, 0)]


def test_noise_is_the_same_in_every_process_and_release() -> None:
    """Literal values: were the hash or its key another, old results could not be repeated."""
    assert image_generator(0, "small_fog", 1, 0).initial_seed() == 15179126788983730400
    assert image_generator(3, "pgd", 0, 999).initial_seed() == 3431039984476091180


def test_blur_is_the_one_of_torchvision() -> None:
    images = torch.rand(2, 3, 20, 33, dtype=torch.float64)
    deviation = strengths("small_gaussian_blur")[2] * 20
    expected = TF.gaussian_blur(images, kernel_size=[11, 11], sigma=[deviation, deviation])
    torch.testing.assert_close(corrupt(images, "small_gaussian_blur", 3), expected)


# ---------------------------------------------------------------- shards


def test_shards_merge_to_the_whole(linear: nn.Module) -> None:
    """Unequal batch sizes, interleaved and padded shards: as if one process had seen all images once."""
    whole = _outcomes(linear, _data(), batch_size=64)
    shards = [[*range(0, COUNT, 3)], [*range(1, COUNT, 3), 0], [*range(2, COUNT, 3), 1]]
    parts = [
        _outcomes(linear, Subset(_data(), shard), indices=shard, batch_size=size)
        for shard, size in zip(shards, (7, 64, 5), strict=True)
    ]
    merged = [Outcome.merge(same) for same in zip(*parts, strict=True)]
    assert all(map(_same, merged, whole))
    assert corruption_errors(merged) == corruption_errors(outcome.row for outcome in whole)


def _shard(shard: list[int]) -> list[Outcome]:
    torch.set_num_threads(1)
    return _outcomes(_linear(), Subset(_data(), shard), indices=shard, batch_size=11)


def test_two_processes_count_as_one(linear: nn.Module) -> None:
    half = COUNT // 2
    with forkserver().Pool(1) as pool:
        theirs = pool.apply(_shard, ([*range(half, COUNT)],))
    mine = _shard([*range(half)])
    merged = [Outcome.merge(same) for same in zip(mine, theirs, strict=True)]
    assert all(map(_same, merged, _outcomes(linear, _data())))


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (range(COUNT - 1), "got 69 indices for at least 70 images"),
        (range(COUNT + 1), "got 71 indices for 70 images"),
        ([0.5] * COUNT, "indices that are not integers"),
        (torch.zeros(COUNT), r"indices torch.float32 \(70,\)"),
        (range(-1, COUNT - 1), "got the index -1"),
        ([0] * COUNT, "different labels or predictions for"),
    ],
)
def test_wrong_indices(indices, message: str, linear: nn.Module) -> None:
    with pytest.raises(ValueError, match=message):
        next(outcomes(linear, _data(), ["clean"], indices=indices))


def test_wrong_indices_of_a_batch(linear: nn.Module) -> None:
    images, labels = _data(2).tensors
    for call in (
        partial(corrupt, images, "small_contrast"),
        partial(pgd, linear, images, labels),
    ):
        for indices in ([0], torch.zeros(2, 1, dtype=torch.int64), [0, -2], "ab"):
            with pytest.raises(ValueError, match=r"got (\d )?(indices|the index)"):
                call(indices=indices)


# ---------------------------------------------------------------- outcomes


def _outcome(indices: list[int], labels: list[int], predictions: list[int], condition: str = "clean") -> Outcome:
    return Outcome(
        condition, 0, *(torch.tensor(values, dtype=torch.int64) for values in (indices, labels, predictions))
    )


def test_outcome_counts() -> None:
    outcome = _outcome([4, 2, 9, 0], [1, 1, 0, 2], [1, 0, 0, 1])
    assert len(outcome) == 4
    assert outcome.correct.tolist() == [True, False, True, False]
    assert outcome.row == {"condition": "clean", "severity": 0, "accuracy": 0.5}
    with pytest.raises(ValueError, match="holds no images"):
        _ = _outcome([], [], []).accuracy
    with pytest.raises(ValueError, match=r"labels torch.int64 \(1,\)"):
        _outcome([0, 1], [0], [0, 1])
    with pytest.raises(ValueError, match=r"predictions torch.float32"):
        Outcome("clean", 0, torch.arange(2), torch.arange(2), torch.rand(2))


def test_merge_counts_each_image_once() -> None:
    merged = Outcome.merge([_outcome([3, 0], [1, 1], [0, 1]), _outcome([1, 3], [2, 1], [2, 0]), _outcome([], [], [])])
    assert merged.indices.tolist() == [0, 1, 3]
    assert merged.labels.tolist() == [1, 2, 1]
    assert merged.predictions.tolist() == [1, 2, 0]
    assert merged.accuracy == pytest.approx(2 / 3)


def test_merge_refuses_what_does_not_belong_together() -> None:
    first = _outcome([3, 0], [1, 1], [0, 1])
    for other in (_outcome([3], [1], [1]), _outcome([3], [0], [0])):
        with pytest.raises(ValueError, match="different labels or predictions for 1 images, such as index 3"):
            Outcome.merge([first, other])
    with pytest.raises(ValueError, match="expected one condition"):
        Outcome.merge([first, _outcome([1], [1], [1], "fgsm")])
    with pytest.raises(ValueError, match="expected one condition"):
        Outcome.merge([])


def test_accuracy_rows_and_errors_are_counted_from_outcomes(linear: nn.Module) -> None:
    found = list(outcomes(linear, _data(), ["clean", "small_fog", "small_contrast"], [1, 3]))
    assert [outcome.row for outcome in found] == list(
        evaluate(linear, _data(), ["clean", "small_fog", "small_contrast"], [1, 3])
    )
    assert accuracy(linear, _data()) == found[0].accuracy == float(found[0].correct.double().mean())
    assert corruption_errors(found) == {
        "small_fog": (1 - found[1].accuracy, 1 - found[2].accuracy),
        "small_contrast": (1 - found[3].accuracy, 1 - found[4].accuracy),
    }


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize("label", [-100, -1, 10])
def test_labels_that_are_no_classes_are_refused(label: int, linear: nn.Module) -> None:
    images, labels = _data(3).tensors
    labels = torch.tensor([0, label, 9])
    data = TensorDataset(images, labels)
    calls = {
        "accuracy": lambda: accuracy(linear, data),
        "evaluation on 'clean'": lambda: list(evaluate(linear, data)),
        "fgsm": lambda: fgsm(linear, images, labels),
        "pgd": lambda: pgd(linear, images, labels),
    }
    for caller, call in calls.items():
        message = rf"{caller} got the label {label} \(1 of 3 .* for a model with 10 classes; expected 0 to 9"
        with pytest.raises(ValueError, match=message):
            call()


# ---------------------------------------------------------------- names


def test_names_of_imagenet_c_are_its_own() -> None:
    assert available("imagenet-c") == IMAGENET_C
    assert all(name.startswith("small_") for name in available("small"))


@pytest.mark.parametrize("name", ["small_gaussian_blur", "small_occlusion"])
def test_old_names_are_aliases_with_a_warning(name: str) -> None:
    images, old = _data(3).tensors[0], name.removeprefix("small_")
    with pytest.warns(FutureWarning, match=f"'{old}' is now called '{name}'"):
        aliased = corrupt(images, old, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(corrupt(images, name, 2), aliased)
    with pytest.warns(FutureWarning, match=old):
        assert strengths(old) == strengths(name)


def test_results_carry_the_new_name(linear: nn.Module) -> None:
    with pytest.warns(FutureWarning, match="'occlusion' is now called 'small_occlusion'"):
        found = outcomes(linear, _data(5), ["occlusion"], [1])
    assert [outcome.condition for outcome in found] == ["small_occlusion"]
    with pytest.raises(ValueError, match=r"attacks named \['fog'\]"):
        outcomes(linear, _data(5), attacks={"fog": fgsm})


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("small_gausian_noise", "small_gaussian_noise"), ("pixelated", "pixelate"), ("fogg", "fog")],
)
def test_unknown_names_suggest_the_nearest(name: str, nearest: str, linear: nn.Module) -> None:
    for call in (lambda: corrupt(torch.rand(1, 1, 8, 8), name), lambda: evaluate(linear, _data(2), [name])):
        with pytest.raises(ValueError, match=f"Did you mean '{nearest}'"):
            call()
    with pytest.raises(ValueError, match="Did you mean 'fgsm'"):
        evaluate(linear, _data(2), ["fgms"])
    with pytest.raises(ValueError) as refused:
        corrupt(torch.rand(1, 1, 8, 8), "quite another")
    assert "Did you mean" not in str(refused.value)
