"""`vars-ode train`: from pictures to a saved model, through kills, several processes and bad input."""

import csv
import json
import logging
import multiprocessing
import os
import random
import resource
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trees import image_folder, picture
from typer.testing import CliRunner

import vars_ode
from vars_ode.cli import app
from vars_ode.data import Preprocessing, UnreadablePicture
from vars_ode.models import vars_layers
from vars_ode.training.checkpoints import damage_of
from vars_ode.training.command import train
from vars_ode.training.config import resolved
from vars_ode.training.keyed import seeded
from vars_ode.training.sources import training_transform

NANO = {
    "model": "vit_nano_patch4_28",
    "attention": "vars-sd-coupling",
    "attention_kwargs": {"num_features": 4},
    "model_kwargs": {"depth": 1, "embed_dim": 16, "num_heads": 2, "patch_size": 7},
    "in_chans": 1,
}
SMALL = {**NANO, "epochs": 3, "batch_size": 8, "holdout": 0.25, "horizon": "uniform 1-4"}
processes = multiprocessing.get_context("forkserver")  # imports once, and forks what has used no threads
processes.set_forkserver_preload(["vars_ode.training.command", "accelerate"])


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    image_folder(root / "train", per_class=16)
    image_folder(root / "val", per_class=5)
    return root


def options(given: dict[str, Any]) -> list[str]:
    """Settings as arguments of the command."""
    found = []
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            found += [flag if value else f"--no-{flag[2:]}"]
        elif isinstance(value, dict):
            found += [flag, *(f"{key}={item}" for key, item in value.items())]
        else:
            found += [flag, *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def differing(one: Path, other: Path) -> list[str]:
    found, expected = weights(one), weights(other)
    assert found.keys() == expected.keys()
    return [name for name in found if not torch.equal(found[name], expected[name])]


def _child(given: dict[str, Any], out: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    os.setsid()
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(out.with_suffix(".log"), "a")  # noqa: SIM115
    logging.basicConfig()
    logging.getLogger("vars_ode").setLevel(logging.INFO)
    if limit := environment.get("FILE_LIMIT"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    train(given, out)


def start(given: dict[str, Any], out: Path, **environment: str) -> Any:
    process = processes.Process(target=_child, args=(given, out, environment))
    process.start()
    return process


def finish(*children: Any) -> None:
    for child in children:
        child.join(120)
        assert child.exitcode == 0


def test_the_command_trains_saves_and_measures(tree: Path, tmp_path: Path) -> None:
    given = {**SMALL, "data": tree, "epochs": 8, "lr": 5e-3, "model_ema": True, "model_ema_decay": 0.9, "no_aug": True}
    result = CliRunner().invoke(app, ["train", *options(given), "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    out = tmp_path / "run"
    model = vars_ode.load_pretrained(out)
    (layer,) = vars_layers(model).values()
    assert layer.t1 == 5.0  # the horizon of the last update is not saved, but the layer's own
    log = list(csv.DictReader((out / "log.csv").open()))
    assert [int(row["epoch"]) for row in log] == list(range(8))
    assert float(log[-1]["loss"]) < float(log[0]["loss"])
    solves = list(csv.DictReader((out / "solves.csv").open()))
    assert {row["layer"] for row in solves} == {"blocks.0.attn"}
    assert all(1 <= float(row["steps"]) <= 4 and 0 < float(row["active"]) <= 1 for row in solves)
    assert int(solves[0]["solves"]) == 48  # three quarters of 64 images
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["test"]) == {"last", "best", "ema"}
    assert f"test accuracy, best: {100 * summary['test']['best']:.1f} %" in result.output
    assert max(record["validation_accuracy"] for record in summary["epochs"]) > 0.5
    assert summary["test"]["best"] > 0.5
    assert vars_ode.load_pretrained(out / "best") is not None
    assert differing(out, out / "ema") != []


def test_settings_of_a_file_and_of_the_command_line(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("epochs: 1\nbatch-size: 8\nlr: 0.001\nholdout: 0\n")
    arguments = ["train", *options({**NANO, "data": tree, "lr": 2e-3}), "--config", str(tmp_path / "mine.yaml")]
    assert CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "a")]).exit_code == 0
    saved = (tmp_path / "a" / "training.yaml").read_text()
    assert "lr: 0.002" in saved
    assert "epochs: 1" in saved
    again = ["train", "--config", str(tmp_path / "a" / "training.yaml"), "--out", str(tmp_path / "b")]
    assert CliRunner().invoke(app, again).exit_code == 0
    assert differing(tmp_path / "a", tmp_path / "b") == []
    assert (tmp_path / "a" / "solves.csv").read_bytes() == (tmp_path / "b" / "solves.csv").read_bytes()


def test_kills_at_random_times_change_no_bit(tree: Path, tmp_path: Path) -> None:
    given = {**SMALL, "data": str(tree), "epochs": 8, "model_ema": True, "mixup": 0.4, "checkpoint_every": "2"}
    given |= {"aug_repeats": 2, "model_kwargs": {**NANO["model_kwargs"], "drop_path_rate": 0.2}, "reprob": 0.5}
    finish(start({**given, "epochs": 1}, tmp_path / "first"))  # which waits until the server has imported everything
    started = time.monotonic()
    finish(start(given, tmp_path / "whole"))
    whole = time.monotonic() - started
    times = random.Random(0)
    kills = 0
    while kills < 20:
        child = start(given, tmp_path / "killed")
        time.sleep(times.uniform(0.1, 0.5) * whole)
        child.kill()
        child.join()
        kills += child.exitcode == -signal.SIGKILL
        if child.exitcode == 0:  # it came to its end between two kills: another one is killed
            shutil.rmtree(tmp_path / "killed")
    finish(start(given, tmp_path / "killed"))
    assert differing(tmp_path / "whole", tmp_path / "killed") == []
    assert differing(tmp_path / "whole" / "ema", tmp_path / "killed" / "ema") == []
    assert differing(tmp_path / "whole" / "best", tmp_path / "killed" / "best") == []
    one, other = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "killed"))
    for record in (*one["epochs"], *other["epochs"]):
        del record["seconds"], record["images_per_second"]
    assert one["epochs"] == other["epochs"]
    assert one["test"] == other["test"]
    assert "going on after update" in (tmp_path / "killed.log").read_text()
    kept = sorted(path.name for path in (tmp_path / "killed" / "checkpoints").iterdir())
    assert kept == ["00000046", "00000048"]


def test_two_processes_train_as_one(tree: Path, tmp_path: Path) -> None:
    given = {**SMALL, "data": str(tree), "mixup": 0.4, "cutmix": 1.0, "model_ema": True}
    train({**given, "batch_size": 8}, tmp_path / "one")
    train({**given, "batch_size": 4, "grad_accum_steps": 2}, tmp_path / "accumulated")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    where = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    pair = [
        start({**given, "batch_size": 4, "device": "cpu"}, tmp_path / "two", RANK=rank, LOCAL_RANK=rank, **where)
        for rank in ("0", "1")
    ]
    finish(*pair)
    (position, *_) = (tmp_path / "two" / "checkpoints").glob("*/position.json")
    assert json.loads(position.read_text())["images_per_update"] == 8  # that is, they were two
    one = json.loads((tmp_path / "one" / "summary.json").read_text())
    for other in ("two", "accumulated"):
        found = json.loads((tmp_path / other / "summary.json").read_text())
        for mine, theirs in zip(one["epochs"], found["epochs"], strict=True):
            assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
            assert mine["validation_accuracy"] == theirs["validation_accuracy"]
        for folder in (".", "ema"):
            expected = weights(tmp_path / "one" / folder)
            torch.testing.assert_close(weights(tmp_path / other / folder), expected, atol=1e-5, rtol=1e-5)
        rows = [list(csv.DictReader((tmp_path / name / "solves.csv").open())) for name in ("one", other)]
        assert [row["solves"] for row in rows[0]] == [row["solves"] for row in rows[1]]


def test_processes_that_read_images_change_nothing(tree: Path, tmp_path: Path) -> None:
    given = {**SMALL, "data": str(tree), "epochs": 1, "aa": "rand-m9-mstd0.5-inc1", "color_jitter": 0.3}
    train(given, tmp_path / "none")
    train({**given, "workers": 2}, tmp_path / "two")
    assert differing(tmp_path / "none", tmp_path / "two") == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_signals_save_first(
    tree: Path, tmp_path: Path, number: int, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, before = {**SMALL, "data": tree, "epochs": 2}, signal.getsignal(number)
    from vars_ode.training import loop

    step = loop.Training._step

    def interrupted(training: Any, update: int, *rest: Any) -> None:
        if update == 7:
            os.kill(os.getpid(), number)
        step(training, update, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "_step", interrupted)
        result = CliRunner().invoke(app, ["train", *options(given), "--out", str(tmp_path / "run")])
    assert result.exit_code == status, result.output
    assert "stopped after update" in result.output
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert signal.getsignal(number) is before
    assert CliRunner().invoke(app, ["train", *options(given), "--out", str(tmp_path / "run")]).exit_code == 0
    train({**given, "data": str(tree)}, tmp_path / "whole")
    assert differing(tmp_path / "run", tmp_path / "whole") == []


def test_a_scheduler_that_ends_all_processes_of_a_job_loses_nothing(tree: Path, tmp_path: Path) -> None:
    given = {**SMALL, "data": str(tree), "epochs": 60, "workers": 2}
    child = start(given, tmp_path / "run")
    while not list((tmp_path / "run" / "checkpoints").glob("*[0-9]")):
        time.sleep(0.05)
        assert child.is_alive()
    os.killpg(child.pid, signal.SIGTERM)
    child.join(60)
    log = (tmp_path / "run.log").read_text()
    assert "StoppedError: stopped after update" in log
    assert "worker" not in log


def test_data_sets_of_timms_names(tree: Path, tmp_path: Path) -> None:
    given = {**SMALL, "epochs": 1, "val_split": "val"}
    train({**given, "data": "torch/image_folder", "data_dir": str(tree)}, tmp_path / "timm")
    train({**given, "data": str(tree)}, tmp_path / "folder")
    assert differing(tmp_path / "timm", tmp_path / "folder") == []


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "v0-mstd0.5"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_augmentation_bears_every_draw(mode: str, policy: str) -> None:
    config = resolved({"model": "rvt_tiny", "preset": "published", "aa": policy}, 0, 1)
    size = (1 if mode == "L" else 3, 16, 16)
    transform = training_transform(config, Preprocessing(size, (0.0,), (1.0,)))
    picture_of_noise = picture(0, 0, 24, mode)
    for draw in range(800):  # posterizing to no bits at all comes once in some hundred
        with seeded("draw", draw):
            image = transform(picture_of_noise)
        assert image.shape == size
        assert image.isfinite().all()


def test_a_damaged_checkpoint_is_passed_over(tree: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = {**SMALL, "data": str(tree), "epochs": 2}
    train(given, tmp_path / "run")
    newest, older = sorted((tmp_path / "run" / "checkpoints").iterdir(), reverse=True)
    (newest / "optimizer.bin").write_bytes((newest / "optimizer.bin").read_bytes()[:-100])
    expected = weights(tmp_path / "run")
    with caplog.at_level(logging.INFO, "vars_ode"):
        train(given, tmp_path / "run")
    assert f"{newest} is passed over: optimizer.bin has" in caplog.text
    assert f"from {older}" in caplog.text
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path / "run").items())
    (older / "manifest.json").write_text("{")
    assert "cannot be read" in str(damage_of(older))


def test_a_full_disk_is_told_and_loses_nothing(tree: Path, tmp_path: Path) -> None:
    given = {**SMALL, "data": str(tree), "epochs": 2}
    child = start(given, tmp_path / "run", FILE_LIMIT="20000")
    child.join(60)
    assert child.exitcode != 0
    log = (tmp_path / "run.log").read_text()
    assert "the checkpoint after update 6 cannot be written" in log
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    finish(start(given, tmp_path / "run"))


def test_unreadable_images_are_named_or_skipped(tree: Path, tmp_path: Path) -> None:
    image_folder(tmp_path / "data" / "train", per_class=16)
    broken = tmp_path / "data" / "train" / "class_2" / "3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    given = {**SMALL, "data": tmp_path / "data", "epochs": 1, "holdout": 0.0}
    result = CliRunner().invoke(app, ["train", *options(given), "--out", str(tmp_path / "a")])
    assert result.exit_code == 2
    assert f"{broken} is no picture that can be read" in result.output.replace("\n", "")
    given["skip_unreadable"] = True
    result = CliRunner().invoke(app, ["train", *options(given), "--out", str(tmp_path / "b")])
    assert result.exit_code == 0
    assert json.loads((tmp_path / "b" / "summary.json").read_text())["epochs"][0]["unreadable"] == 1


def test_held_out_images_that_cannot_be_read_are_named_or_left_out(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        image_folder(tmp_path / "data" / part, per_class=4)
    broken = tmp_path / "data" / "val" / "class_0" / "0.png"
    broken.write_bytes(broken.read_bytes()[:60])
    given = {**SMALL, "data": str(tmp_path / "data"), "epochs": 1, "validation_batch_size": 3}
    with pytest.raises(UnreadablePicture, match=f"{broken} is no picture"):
        train(given, tmp_path / "a")
    (record,) = train({**given, "skip_unreadable": True}, tmp_path / "b").history
    assert (record["validation_accuracy"] * 15) == pytest.approx(round(record["validation_accuracy"] * 15))
    for file in (tmp_path / "data" / "train").rglob("*.png"):
        file.write_bytes(b"nothing")
    with pytest.raises(UnreadablePicture, match="is no picture"):
        train({**given, "skip_unreadable": True}, tmp_path / "c")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"data": "nowhere"}, "nowhere has no folder train"),
        ({"attention": "vars-x"}, "vars-x"),
        ({"model": "vit_tinny_patch16_224"}, "did you mean vit_tiny_patch16_224"),
        ({"opt": "adamm"}, "adamm"),
        ({"sched": "plateau"}, "needs measurements"),
        ({"num_classes": 2}, "the data have 4 classes"),
        ({"batch_size": 500}, "lower batch_size"),
        ({"mixup": 0.5, "batch_size": 7}, "make batch_size even"),
        ({"solver": "euler@1,2"}, "one solve"),
        ({"checkpoint_every": "soon"}, "checkpoint_every"),
        ({"init": "somewhere"}, "a training needs a model"),
        ({"horizon": "sometimes"}, "cannot read the horizon"),
        ({"amp": True, "amp_dtype": "float16", "device": "cpu"}, "fp16"),
        ({"holdout": 1.5}, "holdout"),
        pytest.param(
            {"device": "cuda"},
            "there is no GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
        ({"log_with": ("tensorbord",)}, "did you mean 'tensorboard'"),
        ({"data": "torch/cifar10", "data_dir": "nowhere"}, "timm cannot open the split 'train' of 'torch/cifar10'"),
        ({"data": "wds/x", "data_dir": "nowhere"}, "'wds/x'"),
    ],
)
def test_bad_settings_are_refused(given: dict[str, Any], message: str, tree: Path, tmp_path: Path) -> None:
    arguments = options({**SMALL, "data": tree, **given})
    result = CliRunner().invoke(app, ["train", *arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_bad_files_of_settings(tree: Path, tmp_path: Path) -> None:
    for text, message in (
        ("epoch: 3", "did you mean 'epochs'"),
        ("epochs: many", "epochs is a setting of type int"),
        ("[1]", "no settings by name"),
        ("a: [", "cannot read"),
    ):
        (tmp_path / "bad.yaml").write_text(text)
        result = CliRunner().invoke(
            app, ["train", "--config", str(tmp_path / "bad.yaml"), "--out", str(tmp_path / "o")]
        )
        assert result.exit_code == 2
        assert message in " ".join(result.output.split())


def test_a_folder_of_another_training_is_refused(tree: Path, tmp_path: Path) -> None:
    given = {**SMALL, "data": str(tree), "epochs": 1}
    train(given, tmp_path / "run")
    with pytest.raises(ValueError, match=r"other settings \(epochs 1 there, 2 now\)"):
        train({**given, "epochs": 2}, tmp_path / "run")
    with pytest.raises(ValueError, match="is not empty and holds no training"):
        train(given, tree)


def test_training_goes_on_from_a_saved_model_with_other_classes(tree: Path, tmp_path: Path) -> None:
    train({**SMALL, "data": str(tree), "epochs": 1}, tmp_path / "first")
    image_folder(tmp_path / "data" / "train", per_class=8, classes=2)
    given = {"data": str(tmp_path / "data"), "init": str(tmp_path / "first"), "epochs": 1, "batch_size": 8, "lr": 1e-9}
    train({**given, "weight_decay": 0.0}, tmp_path / "second")
    before, after = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert after["head.weight"].shape[0] == 2
    kept = [name for name in before if not name.startswith("head")]
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in kept)
