"""The sets that models are evaluated on: read as their archives leave them, refused where they do not fit."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from data_cases import CASES, WNIDS, A, DataCase, cifar_c, class_tree, imagenet_c, put
from PIL import Image

from vars_ode.data import BENCHMARKS, EvaluationSet, Preprocessing, UnreadablePicture, clean_set, open_benchmark, spread
from vars_ode.data.trees import imagenet_subset

PREPROCESSING = Preprocessing((3, 16, 16))


def read(benchmark: str, place: Path, num_classes: int) -> list[EvaluationSet]:
    if benchmark == "clean":
        return [clean_set(str(place), PREPROCESSING, num_classes)]
    return open_benchmark(benchmark, place, PREPROCESSING, num_classes)


def opened(case: DataCase, root: Path) -> list[EvaluationSet]:
    return read(case.benchmark, case.make(root), case.num_classes)


def test_every_benchmark_has_a_case() -> None:
    assert {case.benchmark for case in CASES.values()} == {"clean", *BENCHMARKS}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_conditions_and_labels(case: DataCase, tmp_path: Path) -> None:
    sets = opened(case, tmp_path)
    assert tuple((found.condition, found.severity) for found in sets) == case.conditions
    assert {found.benchmark for found in sets} == {case.benchmark}
    pictures = sets[0].open()
    assert [pictures[i][1] for i in range(len(case.labels))] == list(case.labels)
    assert {pictures[i][0].shape for i in range(len(pictures))} == {(3, 16, 16)}
    assert all(0 <= pictures[i][0].min() <= pictures[i][0].max() <= 1 for i in range(len(pictures)))
    assert (None if sets[0].classes is None else len(sets[0].classes)) == case.classes
    assert sets[0].classes is None or set(case.labels) <= set(sets[0].classes)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_workers_are_sent_the_sets(case: DataCase, tmp_path: Path) -> None:
    first = opened(case, tmp_path)[-1].open()
    first[0]
    assert (pickle.loads(pickle.dumps(first))[1][0] == first[1][0]).all()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_model_of_other_classes_is_refused(case: DataCase, tmp_path: Path) -> None:
    place = case.make(tmp_path)
    with pytest.raises(ValueError, match="7"):
        read(case.benchmark, place, 7)


def test_pictures_of_imagenet_c_are_not_cropped_again(tmp_path: Path) -> None:
    place = tmp_path / "fog" / "1" / "a" / "0.png"
    put(place, 0, (16, 16))
    (found,) = open_benchmark("imagenet-c", tmp_path, PREPROCESSING, 1)
    values = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(values).save(place)
    assert (found.open()[0][0].permute(1, 2, 0).mul(255).round().numpy() == values).all()


def test_severities_of_cifar_are_blocks(tmp_path: Path) -> None:
    sets = open_benchmark("cifar-10-c", cifar_c(tmp_path, ["fog"]), PREPROCESSING, 10)
    values = [[round(float(found.open()[i][0].mean()) * 255) for i in range(4)] for found in sets]
    assert values == [[4 * severity + i for i in range(4)] for severity in range(5)]


def test_labels_of_one_severity_serve_all(tmp_path: Path) -> None:
    np.save(cifar_c(tmp_path, ["fog"]) / "labels.npy", np.array([3, 1, 4, 1]))
    sets = open_benchmark("cifar-10-c", tmp_path, PREPROCESSING, 10)
    assert [sets[4].open()[i][1] for i in range(4)] == [3, 1, 4, 1]


def test_classes_are_those_of_the_training_folders(tmp_path: Path) -> None:
    class_tree(tmp_path / "train", ["a", "b", "c"])
    class_tree(tmp_path / "val", ["a", "c"])
    pictures = clean_set(str(tmp_path), PREPROCESSING, 3).open()
    assert [pictures[i][1] for i in range(4)] == [0, 0, 2, 2]
    class_tree(tmp_path / "val", ["d"])
    with pytest.raises(ValueError, match="holds the folders d, which are no classes: a, b, c"):
        clean_set(str(tmp_path), PREPROCESSING, 3)


def test_a_part_of_imagenet_keeps_its_labels_beside_its_training_folders(tmp_path: Path) -> None:
    for name in ("train", "val"):
        class_tree(tmp_path / name, [WNIDS[7], WNIDS[3]], each=1)
    pictures = clean_set(str(tmp_path), PREPROCESSING, 1000).open()
    assert [pictures[i][1] for i in range(2)] == [3, 7]
    assert [clean_set(str(tmp_path), PREPROCESSING, 2).open()[i][1] for i in range(2)] == [0, 1]


def test_the_test_part_comes_before_the_one_that_chooses(tmp_path: Path) -> None:
    for name, each in (("val", 1), ("test", 2)):
        class_tree(tmp_path / name, ["a", "b"], each)
    assert len(clean_set(str(tmp_path), PREPROCESSING, 2).open()) == 4


def test_data_sets_of_timm(tmp_path: Path) -> None:
    class_tree(tmp_path / "val", ["a", "b"])
    found = clean_set("torch/image_folder", PREPROCESSING, 2, data_dir=str(tmp_path), split="val")
    pictures = found.open()
    assert [pictures[i][1] for i in range(4)] == [0, 0, 1, 1]
    assert pictures[3][0].shape == (3, 16, 16)
    (tmp_path / "val" / "b" / "picture1.png").write_bytes(b"no picture")
    with pytest.raises(UnreadablePicture, match="picture 3 of the data set"):
        pictures[3]
    with pytest.raises(ValueError, match="has 2 classes and the model 3"):
        clean_set("torch/image_folder", PREPROCESSING, 3, data_dir=str(tmp_path), split="val")
    with pytest.raises(ValueError, match="timm cannot open the split 'validation' of 'torch/cifar10'"):
        clean_set("torch/cifar10", PREPROCESSING, 10, data_dir=str(tmp_path))


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    class_tree(tmp_path, ["a", "b"])
    bad = tmp_path / "b" / "picture0.png"
    whole = bad.read_bytes()
    pictures = clean_set(str(tmp_path), PREPROCESSING, 2).open()
    for content in (b"", b"no picture", whole[: len(whole) // 2], whole[:40]):
        bad.write_bytes(content)
        with pytest.raises(UnreadablePicture, match=str(bad)):
            pictures[2]
    pictures[3]
    bad.unlink()
    with pytest.raises(FileNotFoundError):  # not damaged: gone
        pictures[2]


def test_what_is_no_picture_is_not_listed(tmp_path: Path) -> None:
    class_tree(tmp_path, ["a", "b"])
    for name in ("a/notes.txt", "a/._picture0.png", ".DS_Store"):
        (tmp_path / name).write_text("x")
    class_tree(tmp_path, ["__MACOSX", ".hidden"])
    assert len(clean_set(str(tmp_path), PREPROCESSING, 2).open()) == 4


def test_subsets_are_those_of_the_benchmarks() -> None:
    assert [len(imagenet_subset(name)) for name in ("imagenet_a", "imagenet_r")] == [200, 200]
    assert WNIDS[A[0]] == "n01498041"
    assert sorted(WNIDS) == WNIDS


def test_evenly_spread() -> None:
    assert spread(10, None) == list(range(10))
    assert spread(10, 4) == [0, 2, 5, 7]
    with pytest.raises(ValueError, match="there are 10 pictures, got images=11"):
        spread(10, 11)


def _broken_array(root: Path, array: np.ndarray) -> Path:
    np.save(cifar_c(root, []) / "fog.npy", array, allow_pickle=True)
    return root


@pytest.mark.parametrize(
    ("benchmark", "make", "message"),
    [
        ("clean", lambda p: p / "nothing", "there is no folder"),
        ("clean", lambda p: p, "is not a tree of class folders; it holds no folders"),
        ("clean", lambda p: class_tree(class_tree(p / "x", ["a"]).parent / "y", ["a"]).parent, "several: x, y"),
        ("imagenet-c", lambda p: p / "nothing", "there is no folder"),
        ("imagenet-c", lambda p: class_tree(p, ["a"]), "is not ImageNet-C"),
        ("imagenet-a", lambda p: class_tree(p, ["a"]), "is not imagenet-a"),
        ("imagenet-a", lambda p: class_tree(p, [WNIDS[0]]), f"holds the folders {WNIDS[0]}, which are no classes"),
        ("imagenet-r", lambda p: imagenet_c(p), "is not imagenet-r"),
        ("imagenet-sketch", lambda p: class_tree(p, ["a"]), "is not ImageNet-Sketch"),
        ("imagenetv2", lambda p: class_tree(p, ["a"]), "is not ImageNetV2"),
        ("imagenetv2", lambda p: class_tree(p, ["1000"]), "class folder 1000"),
        ("cifar-10-c", lambda p: class_tree(p, ["a"]), "is not cifar-10-c, which has a labels.npy"),
        ("cifar-10-c", lambda p: cifar_c(p, []), "no corruption beside"),
        ("cifar-10-c", lambda p: _broken_array(p, np.zeros((20, 32, 32), np.uint8)), "expected uint8"),
        ("cifar-10-c", lambda p: _broken_array(p, np.zeros((19, 32, 32, 3), np.uint8)), "five severities"),
        ("cifar-10-c", lambda p: _broken_array(p, np.array([{}, "x"], dtype=object)), "is no array that can be read"),
    ],
)
def test_refusals(benchmark: str, make, message: str, tmp_path: Path) -> None:
    place = make(tmp_path)
    with pytest.raises(ValueError, match=message):
        read(benchmark, place, 10 if benchmark.startswith("cifar") else 1000)
