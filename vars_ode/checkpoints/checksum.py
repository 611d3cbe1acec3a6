"""Weights as they may be in a checkpoint, and a checksum over them and the description of their model."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

ENTRY = "checksum"  # of a description
_NOT_COVERED = (ENTRY, "sha256")
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class CheckpointError(ValueError):
    """A file that cannot be read as a checkpoint, or does not fit the model; the message says why."""


def checksum(description: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """SHA-256 over a description and the names, types, shapes and values of the weights, whatever file they are in."""
    covered = {name: value for name, value in description.items() if name not in _NOT_COVERED}
    found = hashlib.sha256(json.dumps(covered, sort_keys=True).encode())
    for name in sorted(state):
        tensor = state[name].detach().cpu()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()


def check_weights(state: Mapping[str, Tensor], description: Mapping[str, Any] | None, where: str) -> None:
    """Refuse what is no weights, and where the file has a checksum, weights or a description that were changed.

    Raises:
        CheckpointError: a tensor that is sparse, quantised or without values, or another checksum.
    """
    for name, tensor in state.items():
        problem = _problem(tensor)
        if problem:
            raise CheckpointError(
                f"{where}: {name} is {problem}; a checkpoint holds dense tensors with values, in float16 to float64 or "
                "whole numbers: convert the model to them first"
            )
    expected = (description or {}).get(ENTRY)
    if expected is None or description is None:
        return
    try:
        found = checksum(description, state)
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} holds a damaged description ({error}); get it again") from error
    if found != expected:
        raise CheckpointError(
            f"{where} is damaged or was changed: the checksum of its weights and description is {found[:12]}..., "
            f"expected {str(expected)[:12]}...; get it again, and to change settings load the model and set them"
        )


def _problem(tensor: Tensor) -> str | None:
    """What keeps a tensor from being weights, in words."""
    if tensor.is_quantized or (tensor.is_floating_point() and tensor.dtype not in _FLOATS):
        return f"quantised ({tensor.dtype})"
    if tensor.layout is not torch.strided or tensor.is_nested:
        return f"not dense ({tensor.layout})"
    return "on the meta device, without values" if tensor.is_meta else None
