"""Average precision of maps against masks, and the pictures with two objects."""

import gzip
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from vars_ode.analysis.saliency import average_precision, object_masks, two_objects
from vars_ode.data import digits, embedded_set, fashion_mnist, full_fashion_mnist


def test_average_precision_is_that_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randint(0, 6, (4, 5, 7, 7), generator=generator).float()  # with ties
    masks = torch.rand(4, 5, 28, 28, generator=generator) > 0.6
    pixels = maps.repeat_interleave(4, -1).repeat_interleave(4, -2)
    expected = [
        [average_precision_score(masks[i, j].flatten(), pixels[i, j].flatten()) for j in range(5)] for i in range(4)
    ]
    np.testing.assert_allclose(average_precision(maps, masks), expected, rtol=1e-12)


def test_a_uniform_map_scores_the_share_of_the_object() -> None:
    masks = torch.zeros(1, 4, 4, dtype=torch.bool)
    masks[0, :2, :2] = True
    assert average_precision(torch.ones(1, 2, 2), masks).tolist() == [0.25]
    assert average_precision(torch.tensor([[[1.0, 0], [0, 0]]]), masks).tolist() == [1.0]


def test_masks_and_maps_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="in whole tokens"):
        average_precision(torch.ones(1, 3, 3), torch.ones(1, 4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="no object"):
        average_precision(torch.ones(1, 2, 2), torch.zeros(1, 4, 4, dtype=torch.bool))


def test_two_objects_lie_in_two_quarters() -> None:
    images, masks = two_objects(20)
    assert images.shape == (20, 1, 28, 28)
    assert masks.shape == (20, 28, 28)
    quarters = masks.unflatten(-1, (2, 14)).unflatten(-3, (2, 14)).any(-1).any(-2)
    assert quarters.sum((1, 2)).tolist() == [2] * 20
    assert (images[:, 0][masks] > 0.1).all()
    background = images[:, 0][~masks]
    assert 0 <= background.min() < 0.01 < 0.14 < background.max() <= 0.15
    assert torch.equal(two_objects(3)[0], images[:3])
    assert not torch.equal(two_objects(3, seed=1)[0], images[:3])


def test_articles_are_brighter_than_their_background() -> None:
    images = fashion_mnist("test").tensors[0]
    share = object_masks(images).double().mean((1, 2))
    assert 0.3 < share.mean() < 0.6


def idx(path: Path, values: np.ndarray) -> None:
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))


def test_all_of_fashion_mnist_is_read_from_the_system_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("vars_ode.data.fashion_mnist"), "PACKAGE", tmp_path)
    with pytest.raises(ValueError, match="install the system package dataset-fashion-mnist"):
        full_fashion_mnist("test")
    images = np.arange(3 * 28 * 28).reshape(3, 28, 28) % 256
    idx(tmp_path / "t10k-images-idx3-ubyte.gz", images)
    idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.array([3, 9, 0]))
    found, labels = embedded_set("fashion-mnist-full").load("test").tensors
    assert torch.equal(found[:, 0], torch.from_numpy(images).float() / 255)
    assert labels.tolist() == [3, 9, 0]
    idx(tmp_path / "t10k-images-idx3-ubyte.gz", images[0])
    with pytest.raises(ValueError, match="no file of 3-dimensional bytes"):
        full_fashion_mnist("test")
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(b"no archive")
    idx(tmp_path / "t10k-images-idx3-ubyte.gz", images)
    with pytest.raises(ValueError, match="cannot be read"):
        full_fashion_mnist("test")


def test_digits_are_those_of_scikit_learn_in_their_order() -> None:
    train, test = digits("train").tensors, digits("test").tensors
    assert (train[0].shape, test[0].shape) == ((1297, 1, 16, 16), (500, 1, 16, 16))
    assert (train[0].min(), train[0].max()) == (0, 1)
    assert set(train[1].tolist()) == set(range(10))
    assert train[1][:10].tolist() == list(range(10))
    assert embedded_set("digits").classes == tuple("0123456789")
