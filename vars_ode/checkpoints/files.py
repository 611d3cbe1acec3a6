"""What is in a checkpoint file, read without unpickling arbitrary objects."""

import argparse
import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vars_ode.checkpoints.checksum import CheckpointError as CheckpointError
from vars_ode.checkpoints.checksum import check_weights

STATE_KEYS = ("model", "state_dict", "model_state_dict", "model_ema", "state_dict_ema")
WRAPPERS = ("module.", "_orig_mod.")  # put before every key by DistributedDataParallel and torch.compile
FORMAT = "vars_ode"  # marks our own files
RECORDED = "state."  # before the keys of a state dict that was recorded along with inputs and outputs


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    Attributes:
        state: the state dict, without wrappers' prefixes.
        settings: what it says beside it: its metadata, or the authors' `args` Namespace.
        config: what `save_checkpoint` has stored of the model, or None.
        entry: where in the file the state dict was; "" at the top.
        ignored: other entries.
    """

    state: dict[str, Tensor]
    settings: dict[str, Any]
    config: dict[str, Any] | None
    entry: str
    ignored: tuple[str, ...]


def read(path: str | os.PathLike[str], weights: str | None = None) -> Contents:
    """The state dict in a file, and what else the file tells.

    Args:
        path: a safetensors file, or one written by torch.save. Told apart by their content.
        weights: the entry to take the state dict from; by default the first there is of "model", "state_dict",
            "model_state_dict", "model_ema" and "state_dict_ema".

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is empty, truncated, of another format, without a state dict, or needs unpickling of more
            than tensors, plain containers and argparse.Namespace. None of that gets executed.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the checkpoint file in it")
    with path.open("rb") as file:
        head = file.read(16)
    if not head:
        raise CheckpointError(f"{path} is empty (0 bytes): writing it was interrupted, or it was never written")
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        contents = _from_safetensors(path, weights)
    else:
        contents = _from_mapping(path, _unpickle(path, head), weights)
    check_weights(contents.state, contents.config, str(path))
    return contents


def _from_safetensors(path: Path, weights: str | None) -> Contents:
    if weights is not None:
        raise CheckpointError(f"{path} is a safetensors file, which has no entries to choose from; got {weights=}")
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = dict(file.metadata() or {})
    except SafetensorError as error:
        raise CheckpointError(f"{path} is a truncated or damaged safetensors file ({error}); get it again") from error
    state, others = _strip_prefixes(tensors)
    config = _described(metadata, path)
    return Contents(state, metadata, config, "", tuple(others))


def _described(metadata: Mapping[str, str], path: Path) -> dict[str, Any] | None:
    try:
        config = json.loads(metadata.get(FORMAT, "null"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} holds a damaged description ({FORMAT!r}, no JSON: {error}); get it again"
        ) from error
    if not isinstance(config, dict | None):
        raise CheckpointError(f"{path} holds a damaged description ({FORMAT!r} is no mapping); get it again")
    return config


def _unpickle(path: Path, head: bytes) -> Any:
    if not zipfile.is_zipfile(path):
        if head[:2] == b"PK":
            raise CheckpointError(f"{path} is truncated: it starts as a torch file, but has no end; get it again")
        if head[:1] != b"\x80":
            raise CheckpointError(
                f"{path} is neither a safetensors file nor one written by torch.save; it starts with {head!r}"
            )
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # what torch cannot read, it refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refusal(path, str(error))) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, IndexError, AttributeError, TypeError) as error:
        reason = str(error).split("\n")[0]
        raise CheckpointError(
            f"{path} is truncated, damaged or not a checkpoint: torch.load says {reason!r}; get it again"
        ) from error


def _refusal(path: Path, reason: str) -> str:
    if "GLOBAL" not in reason and "global" not in reason and "Unsupported" not in reason:
        return f"{path} is truncated, damaged or not a checkpoint (its pickle ends with: {reason.splitlines()[0]})"
    details = [line.strip() for line in reason.splitlines() if "GLOBAL" in line or "Unsupported" in line]
    return (
        f"{path} is refused: to read it, Python objects beyond tensors, plain containers and argparse.Namespace would "
        f"have to be built, which can execute anything. Nothing was executed. Details: {(details or [reason])[0]} "
        "If you trust its source, load it yourself and save its state dict alone, with torch.save"
    )


def _from_mapping(path: Path, loaded: Any, weights: str | None) -> Contents:
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}, expected a state dict or a dict with one")
    candidates = [key for key in STATE_KEYS if _is_state(loaded.get(key))]
    if weights is not None and not _is_state(loaded.get(weights)):
        raise CheckpointError(f"{path} has no state dict under {weights!r}; there is one under {candidates}")
    if weights is None and not candidates:
        if not _is_state(loaded):
            raise CheckpointError(f"{path} holds no state dict, but the entries {_shorten(map(str, loaded))}")
        state, others = _strip_prefixes(_tensors(loaded))
        return Contents(state, {}, None, "", tuple(others))
    entry = weights or candidates[0]
    state, others = _strip_prefixes(_tensors(loaded[entry]))
    ours = loaded.get("format") == FORMAT
    config = loaded.get("config") if ours else None
    if not isinstance(config, dict | None):
        raise CheckpointError(f"{path} holds a damaged description ('config' is no mapping); get it again")
    rest = [str(key) for key in loaded if key != entry and not (ours and key in ("config", "format"))]
    return Contents(state, _settings(loaded), config, entry, (*rest, *others))


def _settings(loaded: Mapping[Any, Any]) -> dict[str, Any]:
    args = loaded.get("args")
    if isinstance(args, argparse.Namespace):
        return dict(vars(args))
    return dict(args) if isinstance(args, Mapping) else {}


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(item, Tensor) for item in value.values())


def _tensors(value: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {str(key): item for key, item in value.items() if isinstance(item, Tensor)}


def _strip_prefixes(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """(state dict, names of what does not belong to it)."""
    others: list[str] = []
    if any(key.startswith(RECORDED) for key in tensors):
        others = [key for key in tensors if not key.startswith(RECORDED)]
        tensors = {key.removeprefix(RECORDED): tensors[key] for key in tensors if key.startswith(RECORDED)}
    while tensors and any(all(key.startswith(prefix) for key in tensors) for prefix in WRAPPERS):
        tensors = {key.partition(".")[2]: value for key, value in tensors.items()}
    return tensors, others


def _shorten(names: Any, limit: int = 6) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
