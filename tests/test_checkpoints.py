"""Checkpoints: what is recognised, what is refused and with which words, and that nothing in a file is executed."""

import argparse
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import solvers
import vars_ode
from vars_ode import CheckpointError, RobustVisionTransformer, load_checkpoint, save_checkpoint

ATTENTIONS = ("self-attention", "performer", "vars-s", "vars-d", "vars-sd")

PARITY = Path(__file__).parent / "parity"
SMALL = {"base_dims": (8, 8), "depths": (2, 1), "num_heads": (2, 4), "mlp_ratio": 2.0, "num_classes": 10}


def small(attention: str = "vars-d", **options) -> RobustVisionTransformer:
    return RobustVisionTransformer(**{"img_size": 64, **SMALL, "attention": attention, **options}).eval()


def theirs(name: str) -> dict[str, Tensor]:
    recorded = load_file(PARITY / f"{name}.safetensors")
    return {key[6:]: value for key, value in recorded.items() if key.startswith("state.")}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_round_trip(attention: str, suffix: str, tmp_path: Path) -> None:
    model = small(attention, img_size=(48, 80), revision="learned", qkv_bias=False)
    path = tmp_path / f"model{suffix}"
    save_checkpoint(path, model)
    loaded, report = load_checkpoint(path)
    assert report.layout == "vars-ode"
    assert loaded.config.keys() == model.config.keys()
    image = torch.randn(1, 3, 48, 80)
    with torch.no_grad():
        torch.testing.assert_close(loaded(image), model(image), rtol=0, atol=0)


def test_solver_objects_survive(tmp_path: Path) -> None:
    until = solvers.SteadyState(rtol=1e-2, atol=1e-3)
    model = small(solver=solvers.Nesterov(max_steps=7), until=until, t1=float("inf"))
    for name in ("model.pth", "model.safetensors"):
        save_checkpoint(tmp_path / name, model)
        loaded, _ = load_checkpoint(tmp_path / name)
        layer = loaded.stages[0].blocks[0].attn
        assert layer.solver == solvers.Nesterov(max_steps=7)
        assert layer.until == until
        other, _ = load_checkpoint(tmp_path / name, solver="anderson")
        assert isinstance(other.stages[0].blocks[0].attn.solver, solvers.Anderson)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_state_dicts_alone_are_recognised(attention: str, tmp_path: Path) -> None:
    model = small(attention, revision="learned", num_features=None if attention == "vars-s" else 12)
    torch.save(model.state_dict(), tmp_path / "state.pth")
    hints = {"num_heads": (2, 4)} if attention == "self-attention" else {}
    loaded, report = load_checkpoint(tmp_path / "state.pth", **hints)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(image), model(image))
    assert f"attention={attention!r}" in str(report)


def test_known_scales_are_recognised(tmp_path: Path) -> None:
    with torch.device("meta"):
        state = RobustVisionTransformer().state_dict()
    torch.save({key: torch.zeros(value.shape, dtype=value.dtype) for key, value in state.items()}, tmp_path / "ti.pth")
    model, report = load_checkpoint(tmp_path / "ti.pth")
    assert model.config["num_heads"] == (6, 12)
    assert "rvt_tiny" in str(report)


def test_report_of_the_authors_layout(tmp_path: Path) -> None:
    state = theirs("lista_vars_sd_a")
    args = argparse.Namespace(model="rvt", input_size=64, lr=5e-4)
    torch.save({"model": state, "model_ema": state, "args": args, "epoch": 3}, tmp_path / "file.pth")
    model, report = load_checkpoint(tmp_path / "file.pth")
    text = str(report)
    assert "attention='vars-sd'" in text
    assert "revision='learned'" in text
    assert "'model'" in text
    assert "transformers.0.blocks.0.attn.L" in report.ignored
    assert {"model_ema", "args", "epoch"} <= set(report.ignored)
    assert len(report.ambiguous) == 1
    assert "normalize_queries=False" in report.ambiguous[0]
    assert model.stages[0].blocks[0].attn.dictionary.dynamic.normalize_queries
    assert not model.training
    _, settled = load_checkpoint(tmp_path / "file.pth", weights="model_ema", normalize_queries=False)
    assert not settled.ambiguous
    with pytest.raises(CheckpointError, match="no state dict under 'ema'"):
        load_checkpoint(tmp_path / "file.pth", weights="ema")


@pytest.mark.parametrize("name", ["lista_vars_s_a", "ista_vars_sd_a"])
def test_templates_and_filters_are_resampled_to_another_size(name: str, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_file({key: value.contiguous() for key, value in theirs(name).items()}, path)
    model, report = load_checkpoint(path, img_size=(96, 128))
    assert any("resampled" in line for line in report.recognised)
    same, _ = load_checkpoint(path)
    with torch.no_grad():
        image = torch.randn(1, 3, 96, 128)
        # layers resample on the fly as the loader does
        torch.testing.assert_close(model(image), same(image), rtol=1e-4, atol=1e-5)


def test_another_number_of_classes_gets_a_fresh_head() -> None:
    model, report = load_checkpoint(PARITY / "ista_vars_d_a.safetensors", num_classes=3)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 3)
    assert any("head.weight" in line for line in report.ignored)


@pytest.mark.parametrize("protocol", ["zip", "legacy", "plain"])
def test_malicious_pickles_execute_nothing(protocol: str, tmp_path: Path) -> None:
    marker, path = tmp_path / "executed", tmp_path / "file.pth"

    class Payload:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {marker}",)

    contents = {"model": {"weight": torch.zeros(2)}, "args": Payload()}
    if protocol == "plain":
        path.write_bytes(pickle.dumps({"args": Payload()}))
    else:
        torch.save(contents, path, _use_new_zipfile_serialization=protocol == "zip")
    with pytest.raises(CheckpointError, match="Nothing was executed"):
        load_checkpoint(path)
    assert not marker.exists()
    torch.load(path, weights_only=False) if protocol == "zip" else None
    assert marker.exists() == (protocol == "zip")  # the payload is live


@pytest.mark.parametrize("value", [Path("x"), np.float64(0.5), random.Random(0)], ids=["path", "numpy", "random"])
def test_other_objects_are_refused_with_an_explanation(value: object, tmp_path: Path) -> None:
    torch.save({"model": theirs("ista_vars_d_a"), "args": argparse.Namespace(value=value)}, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match="beyond tensors, plain containers and argparse"):
        load_checkpoint(tmp_path / "file.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.99])
def test_truncated_files(suffix: str, share: float, tmp_path: Path) -> None:
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    save_checkpoint(whole, small())
    data = whole.read_bytes()
    cut.write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError, match="empty" if share == 0 else "truncated"):
        load_checkpoint(cut)


@pytest.mark.parametrize(
    "content", [b"hello world, this is text", b"{}", b"\x80\x05K\x01.", b"PK\x03\x04zzzzzzzz", b"\0" * 99]
)
def test_wrong_formats(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="safetensors"):
        load_checkpoint(path.rename(tmp_path / "file.safetensors"))


def test_files_without_a_model(tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    for contents, message in (
        ([1, 2], "holds a list"),
        ({"epoch": 3}, "holds no state dict"),
        ({"a.weight": torch.zeros(3)}, "not a Robust Vision Transformer"),
    ):
        torch.save(contents, path)
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(path)
    with pytest.raises(CheckpointError, match="is a folder"):
        load_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "none.pth")


def test_mismatches(tmp_path: Path) -> None:
    path = PARITY / "ista_vars_d_a.safetensors"
    with pytest.raises(CheckpointError, match=r"of other shape: .*head\.weight is \(10, 32\) in the file"):
        load_checkpoint(path, small(num_classes=5))
    with pytest.raises(CheckpointError, match=r"missing: .*learned"):
        load_checkpoint(path, small(revision="learned"))
    with pytest.raises(CheckpointError, match="holds attention='vars-d'"):
        load_checkpoint(path, attention="performer")
    with pytest.raises(CheckpointError, match="does not fit"):
        load_checkpoint(path, depths=(1, 1))
    with pytest.raises(ValueError, match="hints"):
        load_checkpoint(path, small(), num_classes=10)
    with pytest.raises(CheckpointError, match="does not fit Linear"):
        load_checkpoint(path, nn.Linear(2, 2))
    state = theirs("lista_self-att_a")
    torch.save(state, tmp_path / "self.pth")
    with pytest.raises(CheckpointError, match="give the hint num_heads"):
        load_checkpoint(tmp_path / "self.pth")


def test_a_failed_load_leaves_the_model_alone() -> None:
    model = small(num_classes=5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError):
        load_checkpoint(PARITY / "ista_vars_d_a.safetensors", model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_other_models_and_more_entries(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    save_checkpoint(tmp_path / "file.pth", model, optimizer=optimizer.state_dict(), epoch=3)
    other = nn.Linear(3, 2)
    _, report = load_checkpoint(tmp_path / "file.pth", other)
    torch.testing.assert_close(other.weight, model.weight)
    assert set(report.ignored) == {"optimizer", "epoch"}
    with pytest.raises(ValueError, match=r"entries\['path'\] is a PosixPath"):
        save_checkpoint(tmp_path / "file.pth", model, path=Path("/"))
    with pytest.raises(ValueError, match="tensors alone"):
        save_checkpoint(tmp_path / "file.safetensors", model, epoch=3)
    with pytest.raises(ValueError, match="checkpoint's own"):
        save_checkpoint(tmp_path / "file.pth", model, config={})


def test_saving_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.pth"
    save_checkpoint(path, nn.Linear(3, 2))
    before = path.read_bytes()

    def fail_halfway(contents: object, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail_halfway)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, nn.Linear(3, 2))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["file.pth"]


def test_public_names() -> None:
    for name in ("load_checkpoint", "save_checkpoint", "LoadReport", "CheckpointError", "RobustVisionTransformer"):
        assert hasattr(vars_ode, name)
