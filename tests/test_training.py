"""The training loop: it learns, it is reproducible, it says when it cannot go on."""

import pytest
import torch
from timm.models import VisionTransformer
from torch import nn
from torch.utils.data import TensorDataset

from vars_ode import VARSAttention, no_weight_decay
from vars_ode.training import DivergedError, Recipe, Update, fit, flip_and_shift


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
    moved = flip_and_shift(images, [torch.Generator().manual_seed(seed) for seed in range(200)])
    assert moved.shape == images.shape
    assert torch.equal(moved.sum((1, 2, 3)), torch.ones(200))
    rows, columns = moved[:, 0].nonzero()[:, 1], moved[:, 0].nonzero()[:, 2]
    assert set(rows.tolist()) == {2, 3, 4, 5, 6}
    assert set(columns.tolist()) == {1, 2, 3, 4, 5, 6, 7}  # around 3, and around 5 where mirrored
    assert torch.equal(images[0, 0].nonzero(), torch.tensor([[4, 3]]))
