"""Models out of folders and files: our own, the authors', and state dicts alone."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from vars_ode.checkpoints import authors, files, folder
from vars_ode.checkpoints.files import CheckpointError
from vars_ode.checkpoints.filling import adapt_grids, check_fit, drop_other_head
from vars_ode.checkpoints.plain import decode
from vars_ode.checkpoints.recognition import Recognition, recognise
from vars_ode.models import RobustVisionTransformer
from vars_ode.models.reading import unused_options
from vars_ode.saving.describing import build, fill, restore, spec_of
from vars_ode.saving.shipped import list_pretrained, pretrained_folder

_LEAVE_OUT = "leave model= out to have the model built that the file belongs to"
_LAYOUTS = {
    "authors": "a state dict in the layout of authors",
    "vars-ode": "a model of vars-ode, with its description",
    "timm": "a state dict of a timm vision transformer, without a description",
    "plain state dict": "a plain state dict, without a description",
}


@dataclass(frozen=True)
class LoadReport:
    """What was made of a file; `print(report)` tells it.

    Attributes:
        path: the file or folder.
        layout: what was found: "authors", "vars-ode" (with a description of the model), "timm" (the keys of one of its
            vision transformers) or "plain state dict".
        config: what the model was built with; None where it was given.
        recognised: what was found out, and how.
        ignored: entries, keys and hints that were not used.
        ambiguous: what the file leaves open, what was assumed, and how to say otherwise.
    """

    path: str
    layout: str
    config: dict[str, Any] | None
    recognised: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    ambiguous: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.path}: {_LAYOUTS[self.layout]}"]
        for title in ("recognised", "ambiguous", "ignored"):
            entries = getattr(self, title)
            shown = [*entries[:24], *([f"... and {len(entries) - 24} more"] if len(entries) > 24 else [])]
            lines += [f"{title}:", *(f"  {entry}" for entry in shown)] if entries else []
        return "\n".join(lines)


class _Source(NamedTuple):
    """What a file or folder holds: as `files.Contents`, with the keys translated."""

    where: str
    state: dict[str, Tensor]
    description: dict[str, Any] | None
    settings: dict[str, Any]
    layout: str
    entry: str
    ignored: list[str]


def load_pretrained(path: str | os.PathLike[str]) -> nn.Module:
    """The model that `save_pretrained` wrote, as it was: weights in their precision, settings of each layer.

    It is in evaluation mode; all parameters require gradients. Nothing is fetched, and nothing in the files is
    executed. A solver, adjoint or dictionary of your own must be registered under its name before.

    Args:
        path: the folder, or the model.safetensors or config.json in it; or a name out of `list_pretrained`, of a model
            that comes with the package. A folder of that name goes first.

    Raises:
        FileNotFoundError: there is no such folder, file or model.
        CheckpointError: (a ValueError) a file is missing, damaged, of another version, or describes a model that cannot
            be built here.
    """
    path = found_at(path)
    if not path.exists():
        raise FileNotFoundError(
            f"there is no file or folder {str(path)!r} to load a model from, and the models that come with the "
            f"package are {', '.join(list_pretrained()) or 'none'}"
        )
    if not path.is_dir() and path.name not in (folder.WEIGHTS, folder.CONFIG):
        raise CheckpointError(
            f"{path} is neither a folder of save_pretrained nor the {folder.WEIGHTS} or {folder.CONFIG} in one; other "
            "files are read by load_checkpoint"
        )
    place = path if path.is_dir() else path.parent
    description, state = folder.read(place)
    return restore(description, state, str(place / folder.CONFIG))


def found_at(path: str | os.PathLike[str]) -> Path:
    """A path as it is; or, where there is nothing, the folder of the model of this name in the package."""
    path = Path(path)
    return path if path.exists() else pretrained_folder(path) or path


def load_checkpoint(
    path: str | os.PathLike[str], model: nn.Module | None = None, *, weights: str | None = None, **hints: Any
) -> tuple[nn.Module, LoadReport]:
    """Load the authors' checkpoints, plain state dicts and what was saved here. Executes nothing in them.

    Args:
        path: a folder of `save_pretrained`; a safetensors file, or one of torch.save: a state dict, or a dict that has
            one.
        model: the model to fill, whose settings stay. None builds the one that the file belongs to, in eval mode.
        weights: the entry of the file to take, such as "model_ema"; by default "model" or the like.
        hints: arguments of the model and options of its attention, for what the file does not tell (normalize_queries,
            mostly) or what is to be different (solver, adjoint; num_classes, which makes a fresh head; img_size, to
            whose grid static templates and filters are resampled). What the attention has no use for is ignored.

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
    source = _read(Path(path), weights)
    found = Recognition()
    if source.entry:
        found.found.append(f"weights taken from the entry {source.entry!r}")
    if model is not None:
        found.found += adapt_grids(source.state, model)
        advice = "give the model that it belongs to" if source.layout == "timm" else _LEAVE_OUT
        check_fit(model, source.state, source.where, advice)
        model.load_state_dict(source.state)
        return model, _report(source, found, None)
    if _is_described(source.description):
        model = _from_description(source, hints, found)
    else:
        model = _from_keys(source, hints, found)
    return model, _report(source, found, getattr(model, "config", None) or found.config)


def has_description(path: str | os.PathLike[str]) -> bool:
    """Whether a file or folder tells by itself what model it belongs to, and is no state dict alone.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it cannot be read.
    """
    return _read(Path(path), None).layout == "vars-ode"


def num_classes_of(path: str | os.PathLike[str]) -> int | None:
    """The outputs of the head in a state dict; None where it has no head."""
    weight = _read(Path(path), None).state.get("head.weight")
    return None if weight is None else len(weight)


def _report(source: _Source, found: Recognition, config: dict[str, Any] | None) -> LoadReport:
    parts = (tuple(found.found), tuple(source.ignored), tuple(found.ambiguous))
    return LoadReport(source.where, source.layout, config, *parts)


def _read(path: Path, weights: str | None) -> _Source:
    place = folder.find(path)
    if place is not None and weights is None:
        description, state = folder.read(place)
        return _Source(str(path), state, description, {}, "vars-ode", "", [])
    contents = files.read(path, weights)
    state, ignored = contents.state, list(contents.ignored)
    theirs = authors.is_theirs(state)
    if theirs:
        state, leftovers = authors.translate(state)
        ignored += leftovers
    described = contents.config is not None and "undescribed" not in contents.config
    layout = "authors" if theirs else "vars-ode" if described else _layout(state)
    return _Source(str(path), state, contents.config, contents.settings, layout, contents.entry, ignored)


def _layout(state: Mapping[str, Tensor]) -> str:
    """Of a state dict alone."""
    is_timm = "patch_embed.proj.weight" in state and any(key.startswith("blocks.") for key in state)
    return "timm" if is_timm else "plain state dict"


def _is_described(description: Mapping[str, Any] | None) -> bool:
    return description is not None and "format_version" in description


def _from_description(source: _Source, hints: dict[str, Any], found: Recognition) -> nn.Module:
    description = source.description or {}
    found.found.append(f"the description in the file, written by vars-ode {description.get('version')}")
    spec = spec_of(description, source.where)
    found.config = spec.as_dict()
    hints = _useful(spec.attention, hints, source.ignored)
    if not hints:
        return restore(description, source.state, source.where)
    spec = spec.updated(**hints)
    found.config = spec.as_dict()
    model = build(spec, source.where)
    if "num_classes" in hints:
        source.ignored.extend(drop_other_head(source.state, model))
    found.found += adapt_grids(source.state, model)
    check_fit(model, source.state, source.where, "give other hints, or none")
    fill(model, description, source.state, source.where)
    return model


def _useful(attention: str | None, hints: Mapping[str, Any], ignored: list[str]) -> dict[str, Any]:
    """The hints that an attention has a use for; the others are put down as ignored."""
    unused = unused_options(attention, hints) if attention is not None else []
    ignored.extend(f"{name}={hints[name]!r}: a hint that attention={attention!r} has no use for" for name in unused)
    return {name: value for name, value in hints.items() if name not in unused}


def _from_keys(source: _Source, hints: dict[str, Any], found: Recognition) -> nn.Module:
    """A `RobustVisionTransformer`, from the arguments in files of the first version, or else from keys and shapes."""
    known = source.description or {}
    reason = known.get("undescribed")
    if source.layout == "timm":
        raise CheckpointError(
            f"{source.where} holds the weights of a timm vision transformer without a description of it"
            f"{f' ({reason})' if reason else ''}; build the model and give it as model="
        )
    recognition, model = _recognised(source, known if reason is None else {}, hints)
    if reason is not None:
        found.ambiguous.append(f"the model was not described when it was saved: {reason}")
    _useful(recognition.config.get("attention", "softmax"), hints, source.ignored)
    if "num_classes" in hints:
        source.ignored.extend(drop_other_head(source.state, model))
    found.config = model.config
    found.found[:0] = recognition.found
    found.ambiguous += recognition.ambiguous
    found.found += adapt_grids(source.state, model)
    check_fit(model, source.state, source.where, "its keys or the hints stand for another model")
    model.load_state_dict(source.state)
    return model


def _recognised(
    source: _Source, known: Mapping[str, Any], hints: dict[str, Any]
) -> tuple[Recognition, RobustVisionTransformer]:
    """What was recognised, and the model built from it.

    Raises:
        CheckpointError: shapes, names or stored arguments that are those of no model.
        ValueError: hints that state no model.
    """
    try:
        if known:
            recognition = _from_arguments(known, hints, source.where)
        else:
            recognition = recognise(source.state, source.settings, hints, source.layout == "authors")
        recognition.config = _useful(recognition.config.get("attention", "softmax"), recognition.config, [])
        return recognition, RobustVisionTransformer(**recognition.config).eval()
    except CheckpointError:
        raise
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError) as error:
        if hints and isinstance(error, ValueError):
            raise
        raise CheckpointError(
            f"{source.where} describes no model that can be built here ({type(error).__name__}: {error}); give the "
            "model that it belongs to, with model="
        ) from error


def _from_arguments(stored: Mapping[str, Any], hints: Mapping[str, Any], where: str) -> Recognition:
    """Of files of the first version, which hold the constructor's arguments."""
    config, lost = {}, []
    for name, value in stored.items():
        if isinstance(value, dict) and "unstored" in value:
            if name not in hints:
                lost.append(f"{name} was {value['unstored']}, which is no plain value: taken: the default")
            continue
        try:
            config[name] = decode(value)
        except ValueError as error:
            raise CheckpointError(f"{where}: {name}: {error}") from error
    learned = config.pop("learned", None)
    if learned and not str(config.get("attention")).endswith(learned):
        config["attention"] = f"{config.get('attention')}-{learned}"
    return Recognition({**config, **hints}, ["arguments stored in the file"], lost)
