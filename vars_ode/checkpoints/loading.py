"""From a file to a model, and back."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import solvers
from vars_ode import fourier
from vars_ode.checkpoints import authors, files
from vars_ode.checkpoints.files import FORMAT, CheckpointError
from vars_ode.checkpoints.recognition import Recognition, recognise
from vars_ode.files import write_atomically
from vars_ode.models import RobustVisionTransformer


@dataclass(frozen=True)
class LoadReport:
    """What was made of a file; `print(report)` tells it.

    Attributes:
        path: the file.
        layout: whose keys it has, "authors" or "vars-ode".
        config: the arguments the model was built with; None where it was given.
        recognised: what was found out, and how.
        ignored: entries and keys that were not used.
        ambiguous: what the file leaves open, what was assumed, and how to say otherwise.
    """

    path: str
    layout: str
    config: dict[str, Any] | None
    recognised: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    ambiguous: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.path}: a state dict in the layout of {self.layout}"]
        for title in ("recognised", "ambiguous", "ignored"):
            entries = getattr(self, title)
            shown = [*entries[:24], *([f"... and {len(entries) - 24} more"] if len(entries) > 24 else [])]
            lines += [f"{title}:", *(f"  {entry}" for entry in shown)] if entries else []
        return "\n".join(lines)


def load_checkpoint(
    path: str | os.PathLike[str], model: nn.Module | None = None, *, weights: str | None = None, **hints: Any
) -> tuple[nn.Module, LoadReport]:
    """Load the authors' checkpoints, plain state dicts and what `save_checkpoint` wrote. Executes nothing in them.

    Args:
        path: a safetensors file, or one of torch.save: a state dict, or a dict that has one.
        model: the model to fill. None builds the `RobustVisionTransformer` that the file belongs to, in eval mode.
        weights: the entry of the file to take, such as "model_ema"; by default "model" or the like.
        hints: arguments of `RobustVisionTransformer`, for what the file does not tell (normalize_queries, mostly) or
            what is to be different (solver, adjoint; num_classes, which makes a fresh head; img_size, to whose grid
            static templates and filters are resampled).

    Returns:
        (model, report): the report says what was recognised, what was ignored and what is ambiguous.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: (a ValueError) it cannot be read, is refused, or does not fit the model.
        ValueError: hints that state no model, or hints beside a model.
    """
    if model is not None and hints:
        raise ValueError(
            f"hints ({', '.join(hints)}) say how to build the model, but one is given; set them on it instead"
        )
    contents = files.read(path, weights)
    state, ignored = contents.state, list(contents.ignored)
    theirs = authors.is_theirs(state)
    if theirs:
        state, leftovers = authors.translate(state)
        ignored += leftovers
    recognition = Recognition()
    if model is None:
        if contents.config is not None:
            recognition = _from_config(contents.config, hints)
        else:
            recognition = recognise(state, contents.settings, hints, theirs)
        model = RobustVisionTransformer(**recognition.config).eval()
        if "num_classes" in hints:
            ignored += _drop_other_head(state, model)
    if contents.entry:
        recognition.found.append(f"weights taken from the entry {contents.entry!r}")
    recognition.found += _adapt_grids(state, model)
    _fill(model, state, path)
    config = getattr(model, "config", None) if recognition.config else None
    report = LoadReport(
        path=str(path),
        layout="authors" if theirs else "vars-ode",
        config=config,
        recognised=tuple(recognition.found),
        ignored=tuple(ignored),
        ambiguous=tuple(recognition.ambiguous),
    )
    return model, report


def _from_config(stored: Mapping[str, Any], hints: Mapping[str, Any]) -> Recognition:
    config, lost = {}, []
    for name, value in stored.items():
        if isinstance(value, dict) and "unstored" in value:
            if name not in hints:
                lost.append(f"{name} was {value['unstored']}, which is no plain value: taken: the default")
            continue
        config[name] = _decode(value)
    return Recognition({**config, **hints}, ["arguments stored in the file"], lost)


def _drop_other_head(state: dict[str, Tensor], model: nn.Module) -> list[str]:
    own = model.state_dict()
    names = [name for name in ("head.weight", "head.bias") if name in state]
    if all(name in own and own[name].shape == state[name].shape for name in names):
        return []
    for name in names:
        del state[name]
    state.update({name: own[name] for name in ("head.weight", "head.bias") if name in own})
    return [f"{name}: the hint num_classes asks for another head" for name in names]


def _adapt_grids(state: dict[str, Tensor], model: nn.Module) -> list[str]:
    """Resample static templates and filters, in place of those in `state`, to the grids of the model."""
    own = model.state_dict()
    adapted = []
    for name, value in list(state.items()):
        if name not in own or own[name].shape == value.shape or own[name].ndim != value.ndim:
            continue
        module = model.get_submodule(name.rpartition(".")[0])
        grid = getattr(module, "grid", None)
        if name.endswith(("attn.kernel", "attn.output_kernel")) and grid is not None:
            old = _filter_grid(value)
            spectrum = torch.view_as_complex(value.contiguous().to(torch.promote_types(value.dtype, torch.float32)))
            state[name] = torch.view_as_real(fourier.resample(spectrum, old, grid))
        elif name.endswith("dictionary.static") and grid is not None:
            side = math.isqrt(value.shape[1])
            if side * side != value.shape[1] or value.shape[::2] != own[name].shape[::2]:
                continue
            maps = value.transpose(1, 2).unflatten(-1, (side, side))
            maps = F.interpolate(maps.float(), size=grid, mode="bicubic", align_corners=False)
            state[name] = maps.flatten(-2).transpose(1, 2)
        else:
            continue
        adapted.append(f"{name} resampled from {tuple(value.shape)} to {tuple(state[name].shape)}")
    return adapted


def _filter_grid(kernel: Tensor) -> fourier.Grid:
    height, half = kernel.shape[-3:-1]
    return (height, height if height in (2 * half - 2, 2 * half - 1) else max(2 * half - 2, 1))


def _fill(model: nn.Module, state: dict[str, Tensor], path: str | os.PathLike[str]) -> None:
    own = model.state_dict()
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} is {tuple(state[name].shape)} in the file and {tuple(own[name].shape)} in the model"
        for name in own
        if name in state and own[name].shape != state[name].shape
    ]
    if missing or unexpected or shapes:
        problems = [
            f"{len(names)} {title}: {'; '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
            for title, names in (("of other shape", shapes), ("missing", missing), ("not of this model", unexpected))
            if names
        ]
        raise CheckpointError(
            f"{path} does not fit {type(model).__name__}: {'. '.join(problems)}. Nothing was loaded; leave "
            "model= out to have the model built that the file belongs to"
        )
    model.load_state_dict(state)


def save_checkpoint(path: str | os.PathLike[str], model: nn.Module, /, **entries: Any) -> None:
    """Write a model's state dict and constructor's arguments, so that `load_checkpoint` builds it again. Atomic.

    Args:
        path: the file; with the suffix ".safetensors" in that format, otherwise torch.save's.
        model: the model. Of others than `RobustVisionTransformer` the state dict alone is stored.
        entries: more to store beside it, such as optimizer=optimizer.state_dict(), epoch=3: tensors, numbers, strings
            and plain containers of them, since nothing else is read back. Not with safetensors.

    Raises:
        ValueError: an entry that would not be read back.
    """
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    config = {name: _encode(value) for name, value in getattr(model, "config", {}).items()}
    stored = config if isinstance(model, RobustVisionTransformer) else None
    if Path(path).suffix == ".safetensors":
        if entries:
            raise ValueError(f"safetensors files hold tensors alone, got the entries {', '.join(entries)}")
        metadata = {"format": "pt", **({FORMAT: json.dumps(stored)} if stored is not None else {})}
        separate = {name: tensor.contiguous().clone() for name, tensor in state.items()}
        write_atomically(path, lambda target: safetensors.torch.save_file(separate, target, metadata))
        return
    reserved = {"model", "config", "format"} & set(entries)
    if reserved:
        raise ValueError(f"the entries {', '.join(sorted(reserved))} are the checkpoint's own; name yours otherwise")
    _require_plain(entries, "entries")
    contents = {"format": FORMAT, "model": state, "config": stored, **entries}
    write_atomically(path, lambda target: torch.save(contents, target))


def _require_plain(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _require_plain(key, f"a key of {where}")
            _require_plain(item, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _require_plain(item, f"{where}[{index}]")
    elif type(value) not in (bool, int, float, str, type(None)) and not isinstance(value, Tensor):
        raise ValueError(
            f"{where} is a {type(value).__name__}, which load_checkpoint would refuse to read; store tensors, numbers, "
            "strings and plain containers"
        )


def _encode(value: Any) -> Any:
    """A constructor's argument as plain values; objects of `solvers` by name and fields."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    name = type(value).__name__
    if dataclasses.is_dataclass(value) and getattr(solvers, name, None) is type(value):
        fields = {item.name: _encode(getattr(value, item.name)) for item in dataclasses.fields(value) if item.init}
        if not any(isinstance(item, dict) for item in fields.values()):
            return {"solvers": name, "fields": fields}
    return {"unstored": repr(value)}


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item) for item in value)
    if isinstance(value, dict) and "solvers" in value:
        cls = getattr(solvers, str(value["solvers"]), None)
        if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
            raise CheckpointError(f"the file asks for solvers.{value['solvers']}, which this version does not have")
        return cls(**value["fields"])
    return value
