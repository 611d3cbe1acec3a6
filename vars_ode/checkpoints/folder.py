"""A saved model as a folder, laid out as on the Hugging Face hub: model.safetensors, config.json and a README.md.

Readers see the old model or the new one, whole, whenever a save is interrupted:

    1. the new weights are written beside the old ones, and the new config.json as `PENDING`
    2. the new weights replace the old ones
    3. `PENDING` replaces config.json

config.json has the checksum of its weights. Between 2 and 3 they differ, and the weights are those of `PENDING`.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from vars_ode.checkpoints.checksum import ENTRY, check_weights, checksum
from vars_ode.checkpoints.files import FORMAT, CheckpointError
from vars_ode.files import write_atomically, write_json

WEIGHTS, CONFIG, PENDING, CARD = "model.safetensors", "config.json", ".config.json.pending", "README.md"
_ATTEMPTS = 3  # another process may save between the reading of the two files


def as_safetensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict as safetensors takes it: contiguous, in memory of its own, which no other tensor has a part in."""
    taken: set[int] = set()
    separate = {}
    for name, tensor in state.items():
        if tensor.is_meta:
            raise ValueError(f"{name} is on the meta device and has no values to save; fill the model first")
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in taken or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        taken.add(tensor.untyped_storage().data_ptr())
        separate[name] = tensor
    return separate


def save_file(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """safetensors' own, which raises an error of its own kind where the disk is full."""
    try:
        safetensors.torch.save_file(tensors, path, metadata)
    except safetensors.SafetensorError as error:
        raise OSError(f"{path.parent} cannot be written to: {error}") from error


def write(folder: Path, state: Mapping[str, Tensor], config: Mapping[str, Any], card: str | None) -> None:
    """Write a model, so that readers and interruptions find the old one or the new one.

    Args:
        folder: made where it is not there.
        state: the state dict.
        config: config.json; its entry `FORMAT`, the description, gets checksums and goes into the weights' metadata.
        card: README.md; None leaves it as it is.

    Raises:
        ValueError: `folder` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give save_pretrained a folder, or save a single file by save_checkpoint")
    tensors = as_safetensors(state)
    description = {**config[FORMAT], ENTRY: checksum(config[FORMAT], tensors)}
    metadata = {"format": "pt", FORMAT: json.dumps(description)}
    folder.mkdir(parents=True, exist_ok=True)
    _finish(folder)
    if card is not None:
        write_atomically(folder / CARD, lambda target: target.write_text(card, encoding="utf-8"))

    def write_weights(target: Path) -> None:
        save_file(tensors, target, metadata)
        write_json(folder / PENDING, {**config, FORMAT: {**description, "sha256": _digest(target.read_bytes())}})

    write_atomically(folder / WEIGHTS, write_weights)
    os.replace(folder / PENDING, folder / CONFIG)


def _finish(folder: Path) -> None:
    """Step 3 of a save that was interrupted before it; what one left before step 2 is dropped."""
    pending, weights = folder / PENDING, folder / WEIGHTS
    if not pending.is_file():
        return
    try:
        complete = read_description(pending).get("sha256") == _digest(_read_weights(weights))
    except CheckpointError:
        complete = False
    if complete:
        os.replace(pending, folder / CONFIG)
    else:
        pending.unlink()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def find(path: Path) -> Path | None:
    """The folder that `path` is, or is a file of; None for any other file."""
    if path.is_dir():
        return path
    if path.name not in (WEIGHTS, CONFIG):
        return None
    return path.parent if path.name == CONFIG or _is_ours(path.with_name(CONFIG)) else None


def _is_ours(config: Path) -> bool:
    try:
        return FORMAT in json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(the description, the state dict) of a folder.

    Raises:
        FileNotFoundError: there is no such folder.
        CheckpointError: it is not one that `write` wrote, a file of it is missing, damaged, or not the other's.
    """
    if not folder.exists():
        raise FileNotFoundError(f"there is no folder {str(folder)!r} to load a model from")
    for _ in range(_ATTEMPTS):
        description = read_description(folder / CONFIG)
        content = _read_weights(folder / WEIGHTS)
        found = _digest(content)
        if found == description.get("sha256"):
            return description, _tensors(content, folder / WEIGHTS, description)
        if (folder / PENDING).is_file():
            pending = read_description(folder / PENDING)
            if found == pending.get("sha256"):
                return pending, _tensors(content, folder / WEIGHTS, pending)
    raise CheckpointError(
        f"{folder / WEIGHTS} is not the file that {CONFIG} beside it describes: its sha256 is {found[:12]}..., "
        f"expected {str(description.get('sha256'))[:12]}...; it is damaged or was replaced, so get both files again"
    )


def read_description(path: Path) -> dict[str, Any]:
    """Our entry in a config.json; a CheckpointError where there is none."""
    if not path.is_file():
        raise CheckpointError(
            f"{path.parent} is a folder without {CONFIG}, so nothing that save_pretrained wrote; for weights alone "
            "give load_checkpoint the file in it"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is truncated or damaged: it is no JSON ({error}); get it again") from error
    description = config.get(FORMAT) if isinstance(config, dict) else None
    if not isinstance(description, dict):
        raise CheckpointError(
            f"{path} was not written by vars_ode.save_pretrained: it has no entry {FORMAT!r} that describes a model; "
            'models that timm wrote are loaded by timm.create_model("local-dir:...", pretrained=True)'
        )
    return description


def _read_weights(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing, which {CONFIG} beside it describes; get it again") from error


def _tensors(content: bytes, path: Path, description: Mapping[str, Any]) -> dict[str, Tensor]:
    try:
        state = safetensors.torch.load(content)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is no safetensors file ({error}); get it again") from error
    check_weights(state, description, f"{path.parent} ({CONFIG} and {WEIGHTS})")
    return state
