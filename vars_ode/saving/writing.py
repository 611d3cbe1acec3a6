"""Models into folders and files, from which they come back as they were."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vars_ode.building import ModelSpec
from vars_ode.checkpoints import folder
from vars_ode.checkpoints.checksum import ENTRY, check_weights, checksum
from vars_ode.checkpoints.files import FORMAT
from vars_ode.files import check_name, write_atomically
from vars_ode.models import vars_layers
from vars_ode.models.construction import unwrapped
from vars_ode.saving.describing import describe, timm_config

_GENERATED = "<!-- Written by vars_ode.save_pretrained; without this line a later save leaves the file as it is. -->"
_CARD = """---
library_name: vars-ode
tags:
- image-classification
- vars-ode
- sparse-reconstruction
{front}---
{generated}

# {title}

{what}

## How it is solved

{settings}

## Loading it

```python
import vars_ode

model = vars_ode.load_pretrained("path/to/this/folder")  # in evaluation mode
```

## To be filled in

License, training data and recipe, measured accuracy, intended use and limits.
"""


def save_pretrained(
    model: nn.Module, directory: str | os.PathLike[str], *, card: str | Mapping[str, Any] | None = None
) -> None:
    """Write a model as a folder from which `load_pretrained` builds it again, with the settings its layers have now.

    The folder is laid out as on the Hugging Face hub: model.safetensors, config.json, README.md (a model card to fill
    in). An interrupted save leaves the old model or the new one. Of several processes let one save.

    Args:
        model: a `RobustVisionTransformer`, a VisionTransformer of timm's with any attention that has a name, or a model
            of timm's registry that `convert_attention` converted.
        directory: made where it is not there; other files in it stay.
        card: the text of README.md; or entries of its front matter, such as {"license": "mit"}. None for a skeleton,
            which replaces no card that somebody has written.

    Raises:
        ValueError: a model that cannot be described, so that it could not be built again; the message says why.
    """
    check_name(Path(directory) / folder.WEIGHTS)
    description = describe(model)
    config = {**timm_config(model, description), FORMAT: description}
    path = Path(directory)
    text = card if isinstance(card, str) else _skeleton(model, ModelSpec.from_dict(description["spec"]), card or {})
    written = path / folder.CARD
    keep = (
        card is None and written.is_file() and _GENERATED not in written.read_text(encoding="utf-8", errors="replace")
    )
    folder.write(path, unwrapped(model).state_dict(), config, None if keep else text)


def save_checkpoint(path: str | os.PathLike[str], model: nn.Module, /, **entries: Any) -> None:
    """Write a model to one file, from which `load_checkpoint` builds it again; more may be stored beside it. Atomic.

    Args:
        path: the file; with the suffix ".safetensors" in that format, otherwise torch.save's.
        model: the model. Of one that cannot be described (see `ModelSpec.of`) the state dict alone is stored, and why.
        entries: more to store beside it, such as optimizer=optimizer.state_dict(), epoch=3: tensors, numbers, strings
            and plain containers of them, since nothing else is read back. Not with safetensors.

    Raises:
        ValueError: an entry, or a tensor of the model, that would not be read back.
    """
    if Path(path).suffix == ".safetensors" and entries:
        raise ValueError(f"safetensors files hold tensors alone, got the entries {', '.join(entries)}")
    reserved = {"model", "config", "format"} & set(entries)
    if reserved:
        raise ValueError(f"the entries {', '.join(sorted(reserved))} are the checkpoint's own; name yours otherwise")
    _require_plain(entries, "entries")
    try:
        stored = describe(model)
    except ValueError as error:
        stored = {"undescribed": str(error)}
    state = {name: tensor.detach() for name, tensor in unwrapped(model).state_dict().items()}
    check_weights(state, None, str(path))
    stored[ENTRY] = checksum(stored, state)
    if Path(path).suffix == ".safetensors":
        metadata = {"format": "pt", FORMAT: json.dumps(stored)}
        separate = folder.as_safetensors(state)
        write_atomically(path, lambda target: folder.save_file(separate, target, metadata))
    else:
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


def _skeleton(model: nn.Module, spec: ModelSpec, front: Mapping[str, Any]) -> str:
    """The text of a model card: what is known of the model, and what is for its author to say."""
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    converted = dict.fromkeys(name for name, _ in spec.conversion.values())
    attention = spec.attention or " and ".join(converted) or "its own attention"
    what = (
        f"`{spec.model}` with attention `{attention}`, {millions:.2f} million parameters. Input: images of "
        f"{spec.in_chans} channels, {spec.img_size} pixels a side; {spec.num_classes} classes."
    )
    entries = {"license": None, **front}
    lines = [f"{key}: {json.dumps(value)}\n" for key, value in entries.items() if value is not None]
    if entries["license"] is None:
        lines.append("# license: to be chosen\n")
    return _CARD.format(
        front="".join(lines),
        generated=_GENERATED,
        title=f"{spec.model} with {attention}",
        what=what,
        settings=_settings_table(unwrapped(model)),
    )


def _settings_table(model: nn.Module) -> str:
    """Layers with equal settings share a row."""
    rows: dict[str, list[str]] = {}
    for name, layer in vars_layers(model).items():
        settings = ", ".join(f"{key} {value}" for key, value in layer.settings().items() if value is not None)
        rows.setdefault(settings, []).append(f"`{name}`")
    if not rows:
        return "Its attention takes no solver."
    lines = [f"| {', '.join(names)} | {settings} |" for settings, names in rows.items()]
    return "\n".join(["| layers | settings |", "|---|---|", *lines])
