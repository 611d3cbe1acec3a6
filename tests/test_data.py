"""The embedded data set: shapes, ranges, labels, and the refusal of unknown splits."""

import pytest
import torch

from vars_ode.data import FASHION_MNIST_CLASSES, fashion_mnist


@pytest.mark.parametrize(("split", "count"), [("train", 5000), ("test", 1000)])
def test_shapes_and_ranges(split: str, count: int) -> None:
    images, labels = fashion_mnist(split).tensors
    assert images.shape == (count, 1, 28, 28)
    assert images.dtype == torch.float32
    assert float(images.min()) == 0.0
    assert float(images.max()) == 1.0
    # Exactly the 8-bit grey values: a product with 1/255 would miss some of them.
    assert torch.equal((images * 255).round() / 255, images)
    assert labels.shape == (count,)
    assert labels.dtype == torch.int64
    assert labels.unique().tolist() == list(range(len(FASHION_MNIST_CLASSES)))


def test_items_are_image_and_label() -> None:
    image, label = fashion_mnist("test")[0]
    assert image.shape == (1, 28, 28)
    assert FASHION_MNIST_CLASSES[int(label)] == "Ankle boot"


def test_splits_share_no_image() -> None:
    train = {image.numpy().tobytes() for image in fashion_mnist("train").tensors[0]}
    test = {image.numpy().tobytes() for image in fashion_mnist("test").tensors[0]}
    assert not train & test


def test_labels_belong_to_the_images() -> None:
    """The nearest class mean of the training images is right far more often than chance, 0.1."""
    images, labels = fashion_mnist("train").tensors
    means = torch.stack([images[labels == label].flatten(1).mean(0) for label in range(10)])
    test_images, test_labels = fashion_mnist("test").tensors
    nearest = torch.cdist(test_images.flatten(1), means).argmin(1)
    assert (nearest == test_labels).float().mean() > 0.6


def test_each_call_returns_its_own_tensors() -> None:
    fashion_mnist("test").tensors[0].zero_()
    assert fashion_mnist("test").tensors[0].any()


def test_unknown_split() -> None:
    with pytest.raises(ValueError, match="unknown split 'valid'; choose one of train, test"):
        fashion_mnist("valid")
