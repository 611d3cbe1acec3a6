"""Labels that are not among a model's classes are an error wherever labels are taken, torch's ignore_index too."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from vars_ode import robustness
from vars_ode.training import Recipe, fit


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 4))


def train(model: nn.Module, images: Tensor, labels: Tensor) -> Any:
    return fit(model, TensorDataset(images, labels), Recipe(epochs=1, batch_size=4))


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> Any:
    return robustness.accuracy(model, TensorDataset(images, labels))


def evaluate(model: nn.Module, images: Tensor, labels: Tensor) -> Any:
    data = TensorDataset(images, labels)
    return list(robustness.evaluate(model, data, ["clean", "fgsm"], [1], attacks={"fgsm": robustness.fgsm}))


USES: dict[str, Callable[[nn.Module, Tensor, Tensor], Any]] = {
    "accuracy": accuracy,
    "evaluate": evaluate,
    "fgsm": robustness.fgsm,
    "targeted fgsm": partial(robustness.fgsm, targeted=True),
    "pgd": robustness.pgd,
    "fit": train,
}


@pytest.mark.parametrize("label", [-100, -1, 4, 9])
@pytest.mark.parametrize("use", USES)
def test_labels_out_of_range(use: str, label: int) -> None:
    images, labels = torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, label])
    with pytest.raises(ValueError, match=rf"the label {label} .*for a model with 4 classes; expected 0 to 3"):
        USES[use](model(), images, labels)


@pytest.mark.parametrize(
    "labels", [torch.zeros(4), torch.zeros(4, 1, dtype=torch.long), torch.zeros(4, dtype=torch.int32)]
)
@pytest.mark.parametrize("use", USES)
def test_labels_of_another_kind(use: str, labels: Tensor) -> None:
    with pytest.raises(ValueError, match=r"class indices"):
        USES[use](model(), torch.rand(4, 1, 4, 4), labels)


@pytest.mark.parametrize("use", USES)
def test_labels_in_range_are_taken(use: str) -> None:
    USES[use](model(), torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, 3]))
