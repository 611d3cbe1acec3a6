"""`vars-ode convergence`: what it writes, and what it refuses."""

import csv
import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from click.testing import Result
from demo_cases import TINY
from PIL import Image
from typer.testing import CliRunner
from workers import in_place_of_spawn

import solvers
import vars_ode
from vars_ode import ModelSpec, analysis, attention_layer, save_checkpoint, save_pretrained
from vars_ode.analysis.subjects import find_subject
from vars_ode.cli import app
from vars_ode.report.convergence import MARKER, prepare, run_convergence
from vars_ode.study.run import run_study

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
    folder = tmp_path_factory.mktemp("convergence") / "out"
    result = run("vars-d", "--images", 1, "--solvers", "euler,nesterov", "--out", folder, "--layer", "blocks.1.attn")
    assert result.exit_code == 0, result.output
    return folder


def test_everything_is_written(finished: Path) -> None:
    expected = {f"{stem}.{kind}" for stem in STEMS for kind in ("csv", "png")} | {"index.html", MARKER}
    assert {path.name for path in finished.iterdir()} == expected
    page = (finished / "index.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == len(STEMS)
    assert "http" not in page.replace("http-equiv", "")
    assert "blocks.1.attn" in page
    assert "vars-d" in page
    assert "Everything was measured" in page


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
    assert {row["layer"] for row in _rows(finished / "single_step_gap.csv")} == {f"blocks.{i}.attn" for i in range(3)}


def test_a_second_run_replaces_the_first(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(finished, folder)
    files = json.loads((folder / MARKER).read_text())["files"]
    (folder / "notes.txt").write_text("mine")
    prepare(folder)
    assert {path.name for path in folder.iterdir()} == {MARKER, "notes.txt"}
    assert "trace.csv" in files


def test_page_says_why_there_is_no_energy(tmp_path: Path) -> None:
    subject = find_subject("vars-d-factor", None, None, None, 1, 0)
    for layer, _ in analysis.layer_inputs(subject.model, subject.inputs).values():
        with torch.no_grad():
            layer.learned.factor.mul_(3.0)  # type: ignore[union-attr, operator]
    facts = {"model": "vars-d", "input": "a picture"}
    page = run_convergence(tmp_path / "out", subject, ("nesterov", "douglas_rachford"), None, facts).read_text(
        encoding="utf-8"
    )
    assert "No energy" in page
    assert "none of the solvers has fixed steps" in page
    assert (tmp_path / "out" / "trace.png").is_file()
    assert not (tmp_path / "out" / "convergence.png").exists()


def test_weights_and_picture_of_the_user(tmp_path: Path) -> None:
    weights, picture = tmp_path / "model.safetensors", tmp_path / "picture.png"
    torch.manual_seed(7)
    model = timm.create_model("rvt_tiny", attention="vars-d", img_size=64, depths=(1, 1))
    save_checkpoint(weights, model)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(picture)
    subject = find_subject(None, None, weights, picture, 3, 0)
    assert subject.inputs.shape == (1, 3, 64, 64)
    assert subject.weights == "weights of model.safetensors"
    for key, tensor in model.state_dict().items():
        assert torch.equal(subject.model.state_dict()[key], tensor)


def test_a_run_of_a_study_is_solved_as_it_was_trained(tmp_path: Path) -> None:
    plan = replace(TINY, sparsity=0.1, solver="rk4@4/3", sweep="", sweep_conditions=())
    with in_place_of_spawn():
        assert run_study(tmp_path / "study", plan, ("vars-sd-dictionary",), seeds=1, workers=1) == []
    folder = tmp_path / "study" / "runs" / "vars-sd-dictionary-seed0"
    assert {path.name for path in folder.iterdir()} >= {"model.safetensors", "config.json", "run.json", "trace.npz"}
    for path in (folder, folder / "model.safetensors"):
        subject = find_subject(None, None, path, None, 1, 0)
        assert subject.name == "vit_nano_patch4_28 with vars-sd-dictionary"
        for layer, tokens in analysis.layer_inputs(subject.model, subject.inputs).values():
            assert (layer.solver, layer.t1) == (solvers.RK4(num_steps=3), 4.0)
            assert layer.problem(tokens)[0].sparsity == pytest.approx(0.1)
    out = tmp_path / "out"
    result = run("--checkpoint", folder, "--images", 1, "--solvers", "nesterov", "--out", out)
    assert result.exit_code == 0, result.output
    assert "vit_nano_patch4_28 with vars-sd-dictionary" in (out / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors", "folder"])
def test_a_timm_model_that_was_saved(name: str, tmp_path: Path) -> None:
    layer = attention_layer("vars-softmax", sparsity=0.05, solver="heun")
    model = timm.create_model("vit_tiny_patch16_224", attn_layer=layer, img_size=32, depth=1, num_classes=3)
    if name == "folder":
        save_pretrained(model, tmp_path / name)
    else:
        save_checkpoint(tmp_path / name, model)
    subject = find_subject(None, None, tmp_path / name, None, 1, 0)
    assert subject.name == "vit_tiny_patch16_224 with vars-softmax"
    assert subject.inputs.shape == (1, 3, 32, 32)
    assert subject.inputs.min() == -1  # as timm normalises for it
    ((found, _),) = analysis.layer_inputs(subject.model, subject.inputs).values()
    assert (found.sparsity, found.solver) == (0.05, solvers.Heun())
    with pytest.raises(ValueError, match="tells what model it belongs to"):
        find_subject("vars-d", None, tmp_path / name, None, 1, 0)


def test_a_state_dict_alone_takes_a_name(tmp_path: Path) -> None:
    model, path = ModelSpec("vit_nano_patch4_28", "vars-d", num_classes=7).build(), tmp_path / "state.pth"
    torch.save(model.state_dict(), path)
    for name, attention in (("vars-d", None), ("vit_nano_patch4_28", "vars-d"), (None, "vars-d")):
        subject = find_subject(name, attention, path, None, 1, 0)
        assert torch.equal(subject.model.head.weight, model.head.weight)
        assert subject.name == "vit_nano_patch4_28 with vars-d"
    with pytest.raises(ValueError, match="name the model and --attention beside --checkpoint"):
        find_subject(None, None, path, None, 1, 0)
    with pytest.raises(ValueError, match="does not fit VisionTransformer"):
        find_subject("vars-sd", None, path, None, 1, 0)


def test_a_timm_model_gets_its_attention_and_its_format() -> None:
    subject = find_subject("vit_tiny_patch16_224", "vars_softmax", None, None, 1, 0)
    assert subject.inputs.shape == (1, 3, 224, 224)
    assert subject.pictures.min() >= 0
    assert subject.inputs.min() == -1
    assert len(analysis.layer_inputs(subject.model, subject.inputs)) == 12
    assert timm.is_model("vit_tiny_patch16_224")


def test_a_robust_transformer_gets_its_attention() -> None:
    subject = find_subject("rvt_tiny", "vars_d", None, None, 1, 0)
    assert len(analysis.layer_inputs(subject.model, subject.inputs)) == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vit_tiny_patch16_225"], "did you mean vit_tiny_patch16_224"),
        (["vit_tiny_patch16_224", "--attention", "vars_x"], "unknown attention"),
        (["vars-d", "--attention", "vars_d"], "both name an attention"),
        (["resnet18"], "does not take these arguments"),
        (["softmax"], "no VARS layer"),
        (["--image", "nothing.png"], "there is no image"),
        (["--image", "{file}"], "no picture that can be read"),
        (["--image", "{folder}"], "no picture that can be read"),
        (["--checkpoint", "nothing.pt"], "there is no checkpoint"),
        (["--checkpoint", "{file}"], "file.txt"),
        (["vars-d", "--checkpoint", "{file}"], "tells what model it belongs to"),
        (["--solvers", "rk5"], "did you mean 'rk4'"),
        (["--solvers", "euler,"], "empty solver name"),
        (["--images", "0"], "at least 1"),
        (["--layer", "head"], "its layers: blocks.0.attn"),
        (["--out", "{file}"], "is a file"),
        (["--out", "{folder}"], "holds no convergence results"),
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


def test_info_and_version() -> None:
    shown = CliRunner().invoke(app, ["info"]).output
    lines = dict(line.split(maxsplit=1) for line in shown.splitlines())
    assert lines["torch"] == torch.__version__
    assert lines["threads"] == str(torch.get_num_threads())
    assert {"python", "timm", "processor", "devices", "cores"} <= lines.keys()
    assert CliRunner().invoke(app, ["--version"]).output == f"vars-ode {vars_ode.__version__}\n"
