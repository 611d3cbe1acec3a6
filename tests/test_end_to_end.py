"""From a folder of pictures to a comparison, by the commands alone: train, kill, go on, convert, evaluate, report."""

import csv
import time
from pathlib import Path

import pytest
from data_cases import CASES, WNIDS, put
from test_train_command import start
from typer.testing import CliRunner

from vars_ode.cli import app
from vars_ode.evaluation import read_evaluation

TREES = ("imagenet-c", "imagenet-a", "imagenet-r", "imagenet-sketch")
RVT = {
    "model": "rvt_tiny",
    "attention": "vars-d-factor",
    "model_kwargs": {"base_dims": (8, 8), "num_heads": (1, 2), "depths": (1, 1)},
    "img_size": 32,
    "preset": "published",
    "num_classes": 1000,
    "epochs": 2,
    "batch_size": 50,
    "holdout": 0.0,
}


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of the first hundred of ImageNet's classes, whose labels are those of all thousand."""
    root = tmp_path_factory.mktemp("imagenet")
    for place, wnid in enumerate(WNIDS[:100]):
        put(root / "train" / wnid / "a.png", place % 256, (32, 32))
        put(root / "val" / wnid / "b.png", place % 256, (32, 32))
    return root


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_two_models_from_pictures_to_a_report(imagenet: Path, tmp_path: Path) -> None:
    given, runs = {**RVT, "data": str(imagenet)}, tmp_path / "runs"
    runs.mkdir()
    child = start(given, runs / "rvt")
    while not list((runs / "rvt" / "checkpoints").glob("*[0-9]")):
        time.sleep(0.02)
        assert child.is_alive(), (runs / "rvt.log").read_text()
    child.kill()
    child.join()
    assert not (runs / "rvt" / "model.safetensors").exists()
    finished = start(given, runs / "rvt")
    finished.join(120)
    assert finished.exitcode == 0, (runs / "rvt.log").read_text()
    assert "going on after update" in (runs / "rvt.log").read_text()

    run("convert", "vit_tiny_patch16_224", "--attention", "vars-softmax", "--out", runs / "converted")
    fine = ["--init", runs / "converted", "--data", imagenet, "--img-size", 32, "--lr", 1e-4, "--epochs", 1]
    fine += ["--num-classes", 1000]
    run(
        "train",
        *fine,
        "--preset",
        "light",
        "--batch-size",
        50,
        "--num-classes",
        1000,
        "--holdout",
        0,
        "--out",
        runs / "vit",
    )

    trees = [(f"--{name}", CASES[name].make(tmp_path / "trees" / name)) for name in TREES]
    for name in ("rvt", "vit"):
        conditions = ["--conditions", ",".join(("clean", *TREES, "fgsm"))]
        places = [part for pair in trees for part in pair]
        few = ["--images", 4, "--severities", 1, "--data", imagenet / "val"]
        printed = run("evaluate", runs / name, *few, *conditions, *places, "--out", runs / f"{name}-evaluated")
        assert "no mCE by AlexNet: not all of ImageNet-C" in " ".join(printed.split())
        found = read_evaluation(runs / f"{name}-evaluated")
        assert {key.benchmark for key in found.outcomes} == {"clean", "attacks", *TREES}

    pair = [f"{name}={runs / name}-evaluated" for name in ("rvt", "vit")]
    printed = run("report", *pair, "--baseline", "vit", "--out", runs / "report")
    assert "rvt against vit, clean:" in printed
    rows = list(csv.DictReader((runs / "report" / "accuracies.csv").open()))
    assert {row["condition"] for row in rows} >= {"clean", "imagenet-a", "imagenet-r", "imagenet-sketch", "fgsm", "fog"}
    assert "rvt" in (runs / "report" / "report.html").read_text()
