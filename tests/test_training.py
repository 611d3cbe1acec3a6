"""The training loop: it learns, it is reproducible, it says when it cannot go on."""

import warnings
from collections import Counter
from dataclasses import replace

import pytest
import torch
from timm.models import VisionTransformer
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import solvers
from vars_ode import ModelSpec, VARSAttention, no_weight_decay
from vars_ode.training import (
    DivergedError,
    RandomHorizon,
    Recipe,
    Training,
    Update,
    augmentation_of,
    fit,
    flip_and_shift,
)
from vars_ode.training.order import Order


def separable(count: int = 64) -> TensorDataset:
    labels = torch.arange(count) % 2
    images = torch.rand(count, 1, 4, 4) * 0.2
    images[:, :, :2] += 0.7 * labels.view(-1, 1, 1, 1)
    return TensorDataset(images, labels)


def linear() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))


def test_learns_a_separable_problem() -> None:
    history = fit(linear(), separable(), Recipe(epochs=20, batch_size=16, lr=0.05))
    assert [record["epoch"] for record in history] == list(range(20))
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[-1]["train_accuracy"] == 1.0


def test_the_seed_decides_everything() -> None:
    runs = []
    for seed in (0, 0, 1):
        model = linear()
        fit(model, separable(), Recipe(epochs=2, batch_size=16), seed=seed, augment=flip_and_shift)
        runs.append(torch.cat([parameter.flatten() for parameter in model.parameters()]))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_learning_rate_warms_up_and_decays_to_a_hundredth() -> None:
    rates: list[float] = []
    model = linear()
    update = torch.optim.AdamW.step

    class Spy(torch.optim.AdamW):
        def step(self, closure=None):  # type: ignore[no-untyped-def]
            rates.append(self.param_groups[0]["lr"])
            return update(self, closure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.optim.AdamW.step", Spy.step)
        fit(model, separable(), Recipe(epochs=10, batch_size=16, lr=0.01, warmup_epochs=2))
    assert len(rates) == 40
    assert rates[0] == pytest.approx(1e-4)
    assert max(rates) == pytest.approx(0.01, rel=0.1)
    assert rates.index(max(rates)) == pytest.approx(8, abs=1)
    assert rates[-1] < 3e-4


def test_progress_and_epochs_are_reported() -> None:
    updates: list[Update] = []
    epochs = []
    fit(
        linear(),
        separable(),
        Recipe(epochs=2, batch_size=30),
        progress=updates.append,
        on_epoch=epochs.append,
    )
    assert [update[:2] for update in updates] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert all(update.images == 30 and update.loss > 0 for update in updates)
    assert [record["epoch"] for record in epochs] == [0, 1]


def test_divergence_is_an_error_that_names_the_update() -> None:
    model = linear()
    with torch.no_grad():
        model[1].weight.fill_(float("inf"))
    with pytest.raises(DivergedError, match="update 0 of epoch 0"):
        fit(model, separable(), Recipe(epochs=1, batch_size=16))


@pytest.mark.parametrize(("learned", "name"), [("factor", "factor"), ("dictionary", "mixing")])
def test_weight_decay_leaves_matrices_that_mean_no_change_alone(learned: str, name: str) -> None:
    attention = VARSAttention.configured(learned=learned, num_features=4)
    model = VisionTransformer(
        img_size=8, patch_size=4, in_chans=1, num_classes=2, embed_dim=8, depth=1, num_heads=2, attn_layer=attention
    )
    images = torch.zeros(8, 1, 8, 8)  # nothing to learn from: gradients are next to nothing, decay is what is left
    recipe = Recipe(epochs=3, batch_size=8, lr=1e-3, weight_decay=300.0, warmup_epochs=0)
    before = model.blocks[0].attn.qkv.weight.norm().item()
    fit(model, TensorDataset(images, torch.zeros(8, dtype=torch.long)), recipe)
    matrix = model.blocks[0].attn.learned.get_parameter(name)
    assert (matrix - torch.eye(4)).abs().max() < 0.02
    assert model.blocks[0].attn.qkv.weight.norm() < 0.8 * before
    assert no_weight_decay(model) == {f"blocks.0.attn.learned.{name}"}
    assert no_weight_decay(model.blocks[0].attn.learned) == {name}


@pytest.mark.parametrize(
    "options", [{"epochs": 0}, {"batch_size": 0}, {"lr": 0.0}, {"weight_decay": -1.0}, {"epochs": 1.5}]
)
def test_recipes_that_state_no_training(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Recipe(**options)  # type: ignore[arg-type]


def test_too_few_images_for_a_batch() -> None:
    with pytest.raises(ValueError, match="lower batch_size"):
        fit(linear(), separable(8), Recipe(epochs=1, batch_size=16))


def test_flip_and_shift_moves_whole_images() -> None:
    images = torch.zeros(200, 1, 9, 9)
    images[:, :, 4, 3] = 1.0
    moved = flip_and_shift(images, [torch.Generator().manual_seed(seed) for seed in range(200)], pixels=2)
    assert moved.shape == images.shape
    assert torch.equal(moved.sum((1, 2, 3)), torch.ones(200))
    rows, columns = moved[:, 0].nonzero()[:, 1], moved[:, 0].nonzero()[:, 2]
    assert set(rows.tolist()) == {2, 3, 4, 5, 6}
    assert set(columns.tolist()) == {1, 2, 3, 4, 5, 6, 7}  # around 3, and around 5 where mirrored
    assert torch.equal(images[0, 0].nonzero(), torch.tensor([[4, 3]]))


def test_digits_are_moved_and_not_mirrored() -> None:
    images = torch.zeros(100, 1, 16, 16)
    images[:, :, 4, 3] = 1.0
    moved = augmentation_of(mirrors=False)(images, [torch.Generator().manual_seed(seed) for seed in range(100)])
    assert set(moved[:, 0].nonzero()[:, 1].tolist()) == {3, 4, 5}  # a fourteenth of the side: one pixel
    assert set(moved[:, 0].nonzero()[:, 2].tolist()) == {2, 3, 4}


def vit(**options: object) -> nn.Module:
    torch.manual_seed(0)
    return ModelSpec(
        attention="vars-d-coupling",
        attention_options={"num_features": 4, "sparsity": 0.01, **options},
        num_classes=2,
        img_size=4,
        model_options={"depth": 2, "embed_dim": 8, "num_heads": 2, "patch_size": 2},
    ).build()


def trained(recipe: Recipe, **options: object) -> tuple[torch.Tensor, list[dict]]:
    model = vit()
    history = fit(model, separable(), recipe, **options)  # type: ignore[arg-type]
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]), history  # type: ignore[return-value]


PLAIN = Recipe(epochs=2, batch_size=16, lr=1e-3)


@pytest.fixture(scope="module")
def plain() -> torch.Tensor:
    return trained(PLAIN)[0]


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"opt": "lamb"}, False),
        ({"opt": "sgd", "momentum": 0.5}, False),
        ({"opt_kwargs": {"betas": [0.5, 0.9]}}, False),
        ({"weight_decay": 1.0}, False),
        ({"layer_decay": 0.5}, False),
        ({"clip_grad": 0.01}, False),
        ({"clip_grad": 1e-3, "clip_mode": "value"}, False),
        ({"clip_grad": 1e-3, "clip_mode": "agc"}, False),
        ({"sched": "poly"}, False),
        ({"sched": "step", "sched_kwargs": {"decay_epochs": 1}}, False),
        ({"warmup_epochs": 0.0}, False),
        ({"warmup_lr": 1e-3}, False),
        ({"min_lr": 9e-4}, False),
        ({"smoothing": 0.0}, False),
        ({"bce_loss": True}, False),
        ({"mixup": 0.8}, False),
        ({"cutmix": 1.0}, False),
        ({"mixup": 0.8, "mixup_prob": 0.0}, True),
        ({"mixup": 0.8, "cutmix": 1.0, "mixup_mode": "pair"}, False),
        ({"mixup": 0.8, "mixup_off_epoch": 1}, False),
        ({"aug_repeats": 2}, False),
        ({"amp": True}, False),
        ({"amp": True, "model_ema": True, "horizon": RandomHorizon(1, 3)}, False),
        ({"grad_checkpointing": True}, True),
        ({"channels_last": True}, True),
        ({"torchcompile": "eager"}, True),
        ({"model_ema": True}, True),
        ({"nonfinite": "skip"}, True),
        ({"horizon": RandomHorizon(1, 3)}, False),
        ({"batch_size": 8, "grad_accum_steps": 2}, True),
    ],
    ids=str,
)
def test_what_a_recipe_says_is_done(changes: dict, same: bool, plain: torch.Tensor) -> None:
    found, history = trained(replace(PLAIN, **changes))
    assert found.isfinite().all()
    assert [record["skipped"] for record in history] == [0, 0]
    assert torch.allclose(found, plain, atol=2e-6) == same


def test_the_averaged_weights_are_timms() -> None:
    model = vit()
    training = Training(model, separable(), replace(PLAIN, model_ema=True, model_ema_decay=0.5))
    training.run()
    assert training.ema is not None
    pairs = zip(training.ema.module.parameters(), model.parameters(), strict=True)
    assert 0 < max((average - last).abs().max().item() for average, last in pairs) < 1e-2


def test_held_out_images_are_measured_after_each_epoch() -> None:
    _, history = trained(replace(PLAIN, model_ema=True), validation=separable(20))
    assert all(0 <= record[f"{name}validation_accuracy"] <= 1 for record in history for name in ("", "ema_"))


def test_an_update_that_is_not_finite_stops_or_is_skipped() -> None:
    images, labels = separable().tensors
    images = images.clone()
    images[5] = float("nan")
    data = TensorDataset(images, labels)
    with pytest.raises(DivergedError, match=r"loss became nan at update \d of epoch 0"):
        fit(linear(), data, PLAIN)
    model = linear()
    history = fit(model, data, replace(PLAIN, nonfinite="skip"))
    assert [record["skipped"] for record in history] == [1, 1]
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert history[0]["loss"] > 0


def test_data_sets_of_pairs_train_like_tensors() -> None:
    data = separable()

    class Pairs(Dataset):
        def __len__(self) -> int:
            return len(data)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            image, label = data[index]
            return image, int(label)

    one, other = linear(), linear()
    fit(one, data, PLAIN)
    fit(other, Pairs(), PLAIN)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    with pytest.raises(ValueError, match="with a length and an index"):
        fit(linear(), iter(()), PLAIN)  # type: ignore[arg-type]


def test_training_leaves_the_model_and_the_generator_as_a_plain_module() -> None:
    model, data = vit(), separable()
    state = torch.get_rng_state()
    forward = model.forward
    fit(model, data, replace(PLAIN, amp=True))
    assert torch.equal(state, torch.get_rng_state())
    assert model.forward == forward
    assert model(data.tensors[0]).dtype == torch.float32
    fit(model, data, PLAIN)  # a second training of another precision, in the same process


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_parts_of_an_update_are_its_images_with_their_mirrors(parts: int) -> None:
    order = Order(50, 16, seed=3)
    whole = order.update(4)
    pieces = [order.update(4, part, parts) for part in range(parts)]
    assert sorted(key for piece in pieces for key in piece) == sorted(whole)
    place = {key: index for index, key in enumerate(whole)}
    for piece in pieces:
        assert all(place[a] + place[b] == 15 for a, b in zip(piece, reversed(piece), strict=True))


def test_an_epoch_sees_every_image_once_or_as_often_as_repeated() -> None:
    order = Order(48, 16, seed=0)
    seen = [key.image for update in range(3) for key in order.update(update)]
    assert sorted(seen) == list(range(48))
    assert [key.image for key in order.update(3)] != [key.image for key in order.update(0)]
    repeated = Order(48, 16, seed=0, repeats=3)
    looks = [key for update in range(3) for key in repeated.update(update)]
    assert len(set(looks)) == 48
    assert set(Counter(key.image for key in looks).values()) == {3}


def test_horizons_that_fail_are_counted_by_layer(caplog: pytest.LogCaptureFixture) -> None:
    model = vit(solver=solvers.FixedPoint(max_steps=2, rtol=1e-9, atol=1e-9))
    training = Training(model, separable(), replace(PLAIN, epochs=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error", solvers.SolverWarning)
        training.run()
    assert [(row["layer"], row["solves"], row["failures"]) for row in training.solves] == [
        ("blocks.0.attn", 64, 64),
        ("blocks.1.attn", 64, 64),
    ]
    assert "epoch 0: 64 of 64 solves of blocks.1.attn did not reach" in caplog.text


def test_the_warning_of_an_unreliable_adjoint_is_told_once(recwarn: pytest.WarningsRecorder) -> None:
    model = vit(solver="euler", adjoint="continuous", t1=2.0)
    layers = len(model.blocks)
    warnings.simplefilter("always", solvers.SolverWarning)
    Training(model, separable(), replace(PLAIN, epochs=1)).run()
    told = [str(warning.message) for warning in recwarn if issubclass(warning.category, solvers.SolverWarning)]
    assert len(told) == layers  # not once per update, of which there are several
    assert all("is contractive" in sentence for sentence in told)
