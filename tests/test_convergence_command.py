"""`vars-ode convergence`: what it writes, and what it refuses."""

import csv
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from click.testing import Result
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from vars_ode import analysis
from vars_ode.analysis import study
from vars_ode.analysis.study.run import MARKER, prepare
from vars_ode.cli import app
from vars_ode.demo.settings import Settings
from vars_ode.demo.twins import build_twin

STEMS = (
    "convergence",
    "work_precision_trajectory",
    "work_precision_equilibrium",
    "trace",
    "basin",
    "single_step_gap",
    "attention_maps",
)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["convergence", *map(str, arguments)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "out"
    result = run(
        "vars-d-plain", "--images", 1, "--solvers", "euler,nesterov", "--out", folder, "--layer", "blocks.1.attn"
    )
    assert result.exit_code == 0, result.output
    return folder


def test_everything_is_written(finished: Path) -> None:
    expected = {f"{stem}.{kind}" for stem in STEMS for kind in ("csv", "png")} | {"index.html", MARKER}
    assert {path.name for path in finished.iterdir()} == expected
    page = (finished / "index.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == len(STEMS)
    assert "http" not in page.replace("http-equiv", "")
    assert "blocks.1.attn" in page
    assert "vars-d-plain" in page
    assert "Nothing was left out" in page


def test_numbers_are_sound(finished: Path) -> None:
    orders = _rows(finished / "convergence.csv")
    assert {row["solver"] for row in orders} == {"euler"}
    assert 0.8 < float(orders[0]["measured_order"]) < 1.2
    best = [
        float(row["error"]) for row in _rows(finished / "work_precision_equilibrium.csv") if row["solver"] == "nesterov"
    ]
    assert best[-1] < 0.1 * best[0]
    energies = [float(row["energy"]) for row in _rows(finished / "trace.csv") if row["head"] == "0"]
    assert all(later <= earlier for earlier, later in itertools.pairwise(energies))
    assert {row["converged"] for row in _rows(finished / "basin.csv")} == {"True"}
    assert {row["layer"] for row in _rows(finished / "single_step_gap.csv")} == {
        f"blocks.{i}.attn" for i in range(Settings().depth)
    }


def test_a_second_run_replaces_the_first(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(finished, folder)
    files = json.loads((folder / MARKER).read_text())["files"]
    (folder / "notes.txt").write_text("mine")
    prepare(folder)
    assert {path.name for path in folder.iterdir()} == {MARKER, "notes.txt"}
    assert "trace.csv" in files


def test_a_field_without_energy_is_told(tmp_path: Path) -> None:
    subject = study.build_subject("vars-d", None, None, None, 1, 0)
    for layer, _ in analysis.layer_inputs(subject.model, subject.inputs).values():
        with torch.no_grad():
            layer.learned.factor.mul_(3.0)  # type: ignore[union-attr, operator]
    facts = {"model": "vars-d", "input": "a picture"}
    page = study.run_convergence(tmp_path / "out", subject, ("nesterov", "douglas_rachford"), None, facts).read_text(
        encoding="utf-8"
    )
    assert "No energy" in page
    assert "none of the solvers is one of fixed step" in page
    assert (tmp_path / "out" / "trace.png").is_file()
    assert not (tmp_path / "out" / "convergence.png").exists()


def test_weights_and_picture_of_the_user(tmp_path: Path) -> None:
    weights, picture = tmp_path / "model.safetensors", tmp_path / "picture.png"
    twin = build_twin("vars-sd-dictionary", Settings(), seed=7)
    save_file({name: tensor.contiguous() for name, tensor in twin.state_dict().items()}, weights)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(picture)
    for name in ("vars-sd-dictionary", None):
        subject = study.build_subject(name, None, weights, picture, 3, 0)
        assert subject.inputs.shape == (1, 1, 28, 28)
        assert subject.weights == "weights of model.safetensors"
        for key, tensor in twin.state_dict().items():
            assert torch.equal(subject.model.state_dict()[key], tensor)


def test_a_timm_model_gets_its_attention_and_its_format() -> None:
    subject = study.build_subject("vit_tiny_patch16_224", "vars_softmax", None, None, 1, 0)
    assert subject.inputs.shape == (1, 3, 224, 224)
    assert subject.pictures.min() >= 0
    assert subject.inputs.min() == -1
    assert len(analysis.layer_inputs(subject.model, subject.inputs)) == 12
    assert timm.is_model("vit_tiny_patch16_224")


def test_a_robust_transformer_gets_its_attention() -> None:
    subject = study.build_subject("rvt_tiny", "vars_d", None, None, 1, 0)
    assert len(analysis.layer_inputs(subject.model, subject.inputs)) == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vit_tiny_patch16_225"], "did you mean vit_tiny_patch16_224"),
        (["vit_tiny_patch16_224", "--attention", "vars_x"], "unknown attention"),
        (["vars-d", "--attention", "vars_d"], "goes with a timm model"),
        (["rvt_tiny", "--attention", "vars_softmax"], "choose one of"),
        (["resnet18"], "does not take attn_layer"),
        (["softmax"], "no VARS layer"),
        (["--image", "nothing.png"], "there is no image"),
        (["--image", "{file}"], "no picture that can be read"),
        (["--image", "{folder}"], "no picture that can be read"),
        (["--checkpoint", "nothing.pt"], "there is no checkpoint"),
        (["--checkpoint", "{file}"], "file.txt"),
        (["vars-d", "--checkpoint", "{file}"], "file.txt"),
        (["--solvers", "rk5"], "did you mean 'rk4'"),
        (["--solvers", "euler,"], "empty solver name"),
        (["--images", "0"], "at least 1"),
        (["--layer", "head"], "its layers: blocks.0.attn"),
        (["--out", "{file}"], "is a file"),
        (["--out", "{folder}"], "holds no convergence study"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_refusals_are_sentences(arguments: list[str], message: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    folder, file = tmp_path / "folder", tmp_path / "file.txt"
    folder.mkdir()
    for path in (file, folder / "precious.txt"):
        path.write_text("text")
    result = run(*(a.format(file=file, folder=folder) for a in arguments))
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert (folder / "precious.txt").read_text() == "text"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.txt", "folder"]


def test_a_marker_that_cannot_be_read_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / MARKER).write_text('{"files": ["../other.txt"')
    with pytest.raises(ValueError, match="cannot be read"):
        prepare(tmp_path)


def test_only_own_files_are_removed(tmp_path: Path) -> None:
    folder, outside = tmp_path / "out", tmp_path / "other.txt"
    folder.mkdir()
    outside.write_text("mine")
    (folder / MARKER).write_text('{"files": ["../other.txt", "trace.csv"]}')
    prepare(folder)
    assert outside.read_text() == "mine"


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
