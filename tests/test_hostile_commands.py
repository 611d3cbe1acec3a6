"""What a command refuses or survives: long names, absurd numbers, damaged records, kills and Ctrl-C; by a sentence."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from demo_cases import TINY
from torch import nn
from typer.testing import CliRunner
from workers import forkserver

from vars_ode import ModelSpec, save_checkpoint, save_pretrained
from vars_ode.cli import app
from vars_ode.files import write_atomically, write_json
from vars_ode.models import parse_solves
from vars_ode.report.study import write_report
from vars_ode.study.plan import read_plan
from vars_ode.study.run import run_study
from vars_ode.training import parse_horizon

LONG = 300 * "a"


def refused(arguments: list[str]) -> str:
    """The sentence of a command that ends by itself."""
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "saved"
    options = {"embed_dim": 8, "depth": 1, "num_heads": 1}
    save_pretrained(ModelSpec("vit_nano_patch4_28", "vars-d", model_options=options).build(), folder)
    return folder


# --- names ---


@pytest.mark.parametrize(
    "command",
    [
        ["demo", "--quick"],
        ["convergence"],
        ["dial", "MODEL", "--images", "2"],
        ["train", "--model", "vit_nano_patch4_28"],
    ],
)
def test_results_folders_of_long_names(command: list[str], model: Path, tmp_path: Path) -> None:
    arguments = [str(model) if part == "MODEL" else part for part in command]
    assert "choose a shorter one" in refused([*arguments, "--out", str(tmp_path / LONG)])


@pytest.mark.parametrize("length", [200, 241, 250, 255])
def test_every_name_that_the_system_has_can_be_saved(length: int, tmp_path: Path) -> None:
    path = tmp_path / ("a" * (length - 4) + ".pth")
    save_checkpoint(path, nn.Linear(2, 2))
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("letter", ["a", "ä", "漢"])
def test_longer_names_get_a_sentence(letter: str, model: Path, tmp_path: Path) -> None:
    saved = ModelSpec("vit_nano_patch4_28", "vars-d").build()
    with pytest.raises(ValueError, match="choose a shorter one"):
        save_checkpoint(tmp_path / (256 * letter), saved)
    with pytest.raises(ValueError, match="choose a shorter one"):
        save_pretrained(saved, tmp_path / (256 * letter))
    save_checkpoint(tmp_path / (80 * letter), nn.Linear(2, 2))
    assert len(list(tmp_path.iterdir())) == 1


# --- temporary files ---


def save_for_ever(path: Path) -> None:
    """Begin to write a file, and never finish."""

    def write(target: Path) -> None:
        target.write_text("half")
        time.sleep(600)

    write_atomically(path, write)


def temporary(folder: Path) -> list[Path]:
    return sorted(folder.glob(".*.tmp"))


def begin_to_save(path: Path) -> Any:
    before = temporary(path.parent)
    process = forkserver().Process(target=save_for_ever, args=(path,))
    process.start()
    deadline = time.monotonic() + 60
    while not any(entry.read_text() for entry in temporary(path.parent) if entry not in before):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def test_a_killed_save_is_cleaned_up_by_the_next_and_others_are_left_alone(tmp_path: Path) -> None:
    path, other = tmp_path / "model.pth", tmp_path / "model.pth2"
    killed = begin_to_save(path)
    killed.kill()
    killed.join()
    (left,) = temporary(tmp_path)
    write_json(other, {})
    assert temporary(tmp_path) == [left]  # of another file
    working = begin_to_save(other)
    try:
        write_json(path, {})
        (theirs,) = temporary(tmp_path)  # that of the process at work
        assert theirs != left
        write_json(other, {})
        assert temporary(tmp_path) == [theirs]
    finally:
        working.kill()
        working.join()
    write_json(other, {})
    assert temporary(tmp_path) == []


def test_old_temporary_files_are_removed_whoever_wrote_them(tmp_path: Path) -> None:
    names = [".x.json.01ab23cd.tmp", ".y.json.01ab23cd.tmp", ".x.json.notes.tmp", "x.json.01ab23cd.tmp"]
    for name in names:
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / ".x.json.99999999.tmp").write_text("")  # may still be written, by a version that did not sign
    write_json(tmp_path / "x.json", {})
    left = {entry.name for entry in tmp_path.iterdir()}
    assert left == {*names[1:], ".x.json.99999999.tmp", "x.json"}


# --- damaged records ---


@pytest.mark.parametrize("content", ["{}", "[1]", '{"attention": "softmax", "se', "", "3", '{"rows": [3], "seed": 0}'])
def test_damaged_runs_are_named(content: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    run = folder / "runs" / "softmax-seed0" / "run.json"
    run.parent.mkdir(parents=True)
    write_json(folder / "settings.json", {"settings": TINY.as_dict(), "started": "", "wall_seconds": 0.0})
    run.write_text(content)
    with pytest.raises(ValueError, match=r"softmax-seed0/run\.json is not the record of a finished run") as caught:
        run_study(folder, TINY, ("softmax",), seeds=1)
    assert "remove the file" in str(caught.value)
    assert write_report(folder).is_file()  # of what there is


@pytest.mark.parametrize("content", ["{}", "[1]", "3", '{"settings": [1], "versions": 3, "runs": 5}', '{"runs": [1]}'])
def test_damaged_results_are_reported(content: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(content)
    (tmp_path / "results.csv").write_bytes(b"attention,seed\n\xff\x00,1\n" + content.encode())
    assert write_report(tmp_path).is_file()


def test_a_damaged_run_stops_the_command_with_a_sentence(tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("epochs: 1\ntrain_images: 40\ntest_images: 20\narms:\n  softmax: {attention: softmax}\n")
    record = tmp_path / "out" / "runs" / "softmax-seed0" / "run.json"
    record.parent.mkdir(parents=True)
    record.write_text("[1]")
    settings, _, _ = read_plan(plan)
    write_json(tmp_path / "out" / "settings.json", {"settings": settings.as_dict(), "wall_seconds": 0.0})
    sentence = refused(["study", str(plan), "--out", str(tmp_path / "out")])
    assert "softmax-seed0/run.json is not the record of a finished run" in sentence
    (tmp_path / "out" / "settings.json").write_text("{}")
    assert "settings.json cannot be read" in refused(["study", str(plan), "--out", str(tmp_path / "out")])


# --- numbers ---


@pytest.mark.parametrize("solver", ["euler@1000000000", "rk4@5/1000000000", "euler@10001"])
def test_solves_without_an_answer_are_refused(solver: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"at most 10,000 are accepted"):
        parse_solves(solver)
    assert "no answer would come" in refused(["demo", "--quick", "--solver", solver, "--out", str(tmp_path / "out")])
    assert "no answer would come" in refused(["dial", str(model), "--solvers", solver, "--out", str(tmp_path / "dial")])
    assert "unknown solver" in refused(["demo", "--solver", "euler-1000000000", "--out", str(tmp_path / "out")])


def test_horizons_without_an_end_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 10,000 steps"):
        parse_horizon("uniform 1-1000000000")
    assert str(parse_horizon("log-uniform 1-10000")) == "log-uniform 1-10000"


@pytest.mark.parametrize("images", ["99999", "0", "-1"])
def test_more_images_than_there_are_is_refused(images: str, tmp_path: Path) -> None:
    assert "images" in refused(["convergence", "--images", images, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


# --- Ctrl-C ---

LOADING = """
import os, runpy, signal, sys
class Interrupting:  # Ctrl-C comes when torch is asked for
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
sys.argv = ["vars-ode", "--help"]
from vars_ode.cli import app
app()
"""


def test_ctrl_c_while_libraries_load() -> None:
    signals = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    result = subprocess.run([sys.executable, "-c", LOADING], capture_output=True, text=True, timeout=120, **signals)
    assert (result.returncode, result.stderr) == (130, "\nStopped.\n")


def test_a_program_that_imports_the_library_keeps_its_own_ctrl_c() -> None:
    code = "import signal; own = lambda *_: None; signal.signal(signal.SIGINT, own); import vars_ode; "
    code += "assert signal.getsignal(signal.SIGINT) is own"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert torch.get_num_threads() == 1
