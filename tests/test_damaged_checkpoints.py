"""Damaged checkpoint files: what loads is what was saved, and all else is a CheckpointError."""

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vars_ode import (
    CheckpointError,
    RobustVisionTransformer,
    load_checkpoint,
    load_pretrained,
    save_checkpoint,
    save_pretrained,
    set_solver,
)
from vars_ode.models import vars_layers

SHAPE = {"img_size": 32, "base_dims": (4, 4), "depths": (1, 1), "num_heads": (1, 2), "mlp_ratio": 1.0, "num_classes": 3}


def tiny() -> nn.Module:
    return RobustVisionTransformer(**SHAPE, attention="vars-sd").eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A model that was changed since it was built, in every kind of file."""
    torch.manual_seed(0)
    folder, model = tmp_path_factory.mktemp("saved"), tiny()
    set_solver(model, "rk4", t1=2.0, sparsity=0.125)
    save_checkpoint(folder / "model.pth", model)
    save_checkpoint(folder / "alone.safetensors", model)
    save_pretrained(model, folder / "model")
    return model, folder


def assert_equal(loaded: nn.Module, model: nn.Module) -> None:
    ours, theirs = loaded.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in theirs)
    settings = [{name: layer.settings() for name, layer in vars_layers(one).items()} for one in (loaded, model)]
    assert settings[0] == settings[1]


def loads(load: Callable[[], Any], model: nn.Module) -> bool:
    """Whether a file loads, and then as it was saved; a CheckpointError otherwise."""
    try:
        loaded = load()
    except CheckpointError:
        return False
    assert_equal(loaded[0] if isinstance(loaded, tuple) else loaded, model)
    return True


def damaged(data: bytes, draw: random.Random) -> bytes:
    """One of the things that happen to files."""
    content, place = bytearray(data), draw.randrange(len(data))
    length = min(draw.choice([1, 4, 64, 1000]), len(data) - place)
    kind = draw.choice(["bit", "bit", "bytes", "zeros", "cut", "removed", "twice", "swapped"])
    if kind == "bit":
        content[place] ^= 1 << draw.randrange(8)
    elif kind == "bytes":
        content[place : place + length] = draw.randbytes(length)
    elif kind == "zeros":
        content[place : place + length] = bytes(length)
    elif kind == "cut":
        del content[place:]
    elif kind == "removed":
        del content[place : place + length]
    elif kind == "twice":
        content[place:place] = content[place : place + length]
    else:
        other = draw.randrange(len(data) - length + 1)
        block = content[place : place + length]
        content[place : place + length] = content[other : other + length]
        content[other : other + length] = block
    return bytes(content)


@pytest.mark.parametrize("name", ["model.pth", "alone.safetensors", "model/model.safetensors", "model/config.json"])
def test_damaged_files(name: str, saved: tuple[nn.Module, Path], tmp_path: Path) -> None:
    model, folder = saved
    whole = tmp_path / "copy"
    shutil.copytree(folder, whole)
    path, draw = whole / name, random.Random(name)
    data, loaded = path.read_bytes(), 0
    load = load_checkpoint if path.parent == whole else load_pretrained
    for _ in range(100):
        path.write_bytes(damaged(data, draw))
        loaded += loads(lambda: load(path), model)
    assert loaded < 60, "most damage is noticed; some is to padding, names of other entries, or to nothing"


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """All the places in nested containers."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from places(item, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    changed = copy.copy(value)
    changed[path[0]] = replaced(value[path[0]], path[1:], new)
    return changed


WRONG = [[1], [], {}, {"a": 1}, "x", -1, 0, 1e400, True, {"solver": [1], "fields": {}}, {"number": [1]}, {1: 2}]
WRONG += [{"dictionary": "static+dynamic", "fields": {"grid": [0, 0]}}, {"solver": "euler", "fields": {"dt": "x"}}]


@pytest.mark.parametrize("sealed", [True, False])
def test_wrong_descriptions(sealed: bool, saved: tuple[nn.Module, Path], tmp_path: Path) -> None:
    """With the checksum that the file had, and in files without one, where other settings are what the file says."""
    model, folder = saved
    contents = torch.load(folder / "model.pth", weights_only=True)
    description, draw, path = contents["config"], random.Random(0), tmp_path / "model.pth"
    assert "checksum" in description
    if not sealed:
        del description["checksum"]
    for place in places(description):
        for new in draw.sample(WRONG, 3):
            config = replaced(description, place, new)
            if json.dumps(config) == json.dumps(description):
                continue
            torch.save({**contents, "config": config}, path)
            try:
                loaded, _ = load_checkpoint(path)
            except CheckpointError:
                continue
            if isinstance(config, dict) and "checksum" in config:
                pytest.fail(f"{new!r} at {place} was not noticed")
            assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("config", [[1], "x", 3, {"img_size": [1]}, {"depths": "x"}, {"learned": [1]}, {1: 2}], ids=str)
def test_stored_arguments_that_are_none(config: Any, saved: tuple[nn.Module, Path], tmp_path: Path) -> None:
    """In the form of the first version, whose files had no description but the constructor's arguments."""
    torch.save({"format": "vars_ode", "model": saved[0].state_dict(), "config": config}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "model.pth")


@pytest.mark.parametrize("text", ["{", "[1]", '"x"', "nan", "[" * 100_000, '{"format_version": 1, "spec": [1]}'])
def test_metadata_that_is_no_description(text: str, saved: tuple[nn.Module, Path], tmp_path: Path) -> None:
    state = load_file(saved[1] / "alone.safetensors")
    save_file(state, tmp_path / "model.safetensors", {"vars_ode": text})
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "model.safetensors")


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "one-dimensional": lambda tensor: tensor.flatten(),
    "a number": lambda tensor: tensor.flatten()[0],
    "empty": lambda tensor: tensor[:0],
    "int64": lambda tensor: tensor.long(),
    "int8": lambda tensor: tensor.to(torch.int8),
    "bool": lambda tensor: tensor.bool(),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "sparse": lambda tensor: tensor.to_sparse(),
    "meta": lambda tensor: tensor.to("meta"),
    "float8": lambda tensor: tensor.to(torch.float8_e4m3fn),
    "quantised": lambda tensor: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("change", CHANGES)
def test_tensors_that_are_no_weights(change: str, saved: tuple[nn.Module, Path], tmp_path: Path) -> None:
    """In a described file, in a state dict alone, and into a given model."""
    contents = torch.load(saved[1] / "model.pth", weights_only=True)
    state, path = contents["model"], tmp_path / "model.pth"
    names = [name for name, tensor in state.items() if tensor.is_floating_point()]
    for name in ["stem.conv1.weight", "head.weight", *random.Random(change).sample(names, 6)]:
        other = {**state, name: CHANGES[change](state[name])}
        if other[name].shape == state[name].shape and other[name].dtype == state[name].dtype and other[name].is_cpu:
            continue  # flattened, what had one dimension
        for stored in ({**contents, "model": other}, other):
            torch.save(stored, path)
            with pytest.raises(CheckpointError):
                load_checkpoint(path)
        given = tiny()
        before = copy.deepcopy(given.state_dict())
        with pytest.raises(CheckpointError):
            load_checkpoint(path, given)
        assert all(torch.equal(value, before[key]) for key, value in given.state_dict().items())


def test_no_heads(saved: tuple[nn.Module, Path], tmp_path: Path) -> None:
    state = dict(saved[0].state_dict())
    name = "stages.0.blocks.0.attn.dictionary.dynamic.projection"
    save_file({**state, name: state[name][:0].contiguous()}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "model.safetensors")


def test_what_could_not_be_read_back_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"weight is on the meta device, without values; a checkpoint holds dense"):
        save_checkpoint(tmp_path / "model.pth", nn.Linear(2, 2, device="meta"))
    assert not any(tmp_path.iterdir())


def test_other_models_are_sealed_too(tmp_path: Path) -> None:
    """A model without a description, read back into another one."""
    save_checkpoint(tmp_path / "model.safetensors", nn.Linear(2, 2, bias=False))
    state = load_file(tmp_path / "model.safetensors")
    data = bytearray((tmp_path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(data)
    given = nn.Linear(2, 2, bias=False)
    with pytest.raises(CheckpointError, match="checksum of its weights and description"):
        load_checkpoint(tmp_path / "model.safetensors", given)
    assert not torch.equal(given.weight, state["weight"])


def test_settings_changed_by_hand_are_noticed(saved: tuple[nn.Module, Path], tmp_path: Path) -> None:
    shutil.copytree(saved[1] / "model", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["vars_ode"]["spec"]["layers"]["*"]["sparsity"] = 0.25
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="to change settings load the model and set them"):
        load_pretrained(tmp_path / "model")
