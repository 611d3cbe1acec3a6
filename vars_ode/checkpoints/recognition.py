"""Which model a state dict belongs to, from its keys and shapes."""

import ast
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vars_ode.checkpoints.files import CheckpointError
from vars_ode.models import SCALES

State = Mapping[str, Tensor]

# What settings that come along with weights are called, here and there.
_SETTING_NAMES = {
    "sparsity": ("lam", "lambda", "sparsity"),
    "num_steps": ("num_step", "num_steps"),
    "num_heads": ("heads", "num_heads"),
    "img_size": ("image_size", "img_size", "input_size"),
}
_ERAS = {"ista": ("paper", False), "lista-raw": ("learned", False), "lista": ("learned", True)}
NORMALIZATION = (
    "whether queries were normalised before the random features leaves no trace in a state dict. Taken: {taken}, as "
    "in the authors' latest code; the code at the time the pretrained weights were published did not, so compare with "
    "normalize_queries={other} if accuracy is not what you expect"
)

ARITHMETIC = (
    "whether VARS-S was trained in the authors' arithmetic leaves no trace in a state dict. Taken: revision='paper', "
    "theirs; compare with revision='corrected', the default of new models"
)


@dataclass
class Recognition:
    """The constructor's arguments, and in words how they were found."""

    config: dict[str, Any] = field(default_factory=dict)
    found: list[str] = field(default_factory=list)
    ambiguous: list[str] = field(default_factory=list)

    def settle(self, name: str, value: Any, why: str) -> None:
        """Set an argument that nothing has set before."""
        if name not in self.config:
            self.config[name] = value
            self.found.append(f"{name}={value!r} ({why})")


def recognise(state: State, settings: Mapping[str, Any], hints: Mapping[str, Any], theirs: bool = True) -> Recognition:
    """The arguments of `RobustVisionTransformer` for a state dict under our keys.

    Args:
        state: the state dict.
        settings: what the file says beside it.
        hints: arguments that are known; they come before everything else.
        theirs: whether it is the authors' state dict, under our keys.

    Raises:
        CheckpointError: the state dict is not that of such a model, or what it leaves open has no safe default.
    """
    result = Recognition(dict(hints))
    attention = _attention(state)
    if hints.get("attention", attention) != attention:
        raise CheckpointError(
            f"the file holds attention={attention!r}, as its keys show, got the hint attention={hints['attention']!r}"
        )
    result.settle("attention", attention, "keys")
    settings = _flatten(settings)
    _scale(state, settings, result)
    _revision(state, settings, result)
    if result.config["attention"] == "vars-s" and "revision" not in result.config:
        result.settle("revision", "paper", "the arithmetic of published VARS-S weights")
        if not theirs:
            result.ambiguous.append(ARITHMETIC)
    _img_size(state, settings, result)
    for name in ("sparsity", "num_steps") if result.config["attention"].startswith("vars") else ():
        if (value := _setting(settings, name)) is not None:
            result.settle(name, value, "stored in the file")
    return result


def _attention(state: State) -> str:
    kinds = {
        "vars-s": "attn.kernel",
        "vars-sd": "attn.dictionary.static",
        "vars-d": "attn.dictionary.projection",
        "performer": "attn.projection",
        "self-attention": "attn.qkv.weight",
    }
    blocks = {key.partition(".attn.")[0] for key in state if key.startswith("stages.") and ".attn." in key}
    found = {next((kind for kind, key in kinds.items() if f"{block}.{key}" in state), None) for block in blocks}
    if not blocks or None in found or "stem.conv1.weight" not in state or "stem.conv2.weight" not in state:
        names = ", ".join(sorted(state)[:4])
        raise CheckpointError(
            f"this is not a Robust Vision Transformer with one of the paper's attentions; its {len(state)} tensors are "
            f"{names}, ...; give the model that they belong to, with model="
        )
    if len(found) > 1:
        raise CheckpointError(f"the blocks have different attentions, {sorted(map(str, found))}; give model=")
    return str(found.pop())


def _scale(state: State, settings: Mapping[str, Any], result: Recognition) -> None:
    depths = _depths(state)
    first = [f"stages.{stage}.blocks.0." for stage in range(len(depths))]
    try:
        dims = [state[f"{block}mlp.fc2.weight"].shape[0] for block in first]
        hidden = state[f"{first[0]}mlp.fc1.weight"].shape[0]
    except KeyError as error:
        raise CheckpointError(f"the state dict is incomplete: {error} is missing") from error
    heads, why = _heads(state, first, dims, depths, settings, result)
    result.settle("depths", depths, "keys")
    result.settle("num_heads", heads, why)
    result.settle("base_dims", tuple(dim // count for dim, count in zip(dims, heads, strict=True)), "shapes")
    stem = state["stem.conv1.weight"]
    result.settle("mlp_ratio", hidden / dims[0], "shapes")
    result.settle("num_classes", state["head.weight"].shape[0] if "head.weight" in state else 0, "shapes")
    result.settle("in_chans", stem.shape[1], "shapes")
    result.settle("stem_width", stem.shape[0], "shapes")
    result.settle("patch_size", 4 * state["stem.conv2.weight"].shape[-1], "shapes")
    bias = any(f"{first[0]}attn.{name}.bias" in state for name in ("qkv", "v"))
    result.settle("qkv_bias", bias, "keys")
    if f"{first[0]}attn.position_scale" in state:
        result.settle("position_scaling", True, "keys")
    if (scale := _known_scale(dims, depths)) is not None and hidden == 4 * dims[0]:
        result.found.append(f"this is the scale of rvt_{scale}")


def _depths(state: State) -> tuple[int, ...]:
    pairs = {tuple(key.split(".")[1:4:2]) for key in state if key.startswith("stages.") and ".blocks." in key}
    stages = 1 + max(int(stage) for stage, _ in pairs)
    return tuple(sum(1 for stage, _ in pairs if int(stage) == index) for index in range(stages))


def _known_scale(dims: list[int], depths: tuple[int, ...]) -> str | None:
    for name, scale in SCALES.items():
        widths = [width * heads for width, heads in zip(scale["base_dims"], scale["num_heads"], strict=True)]
        if widths == dims and scale["depths"] == depths:
            return name
    return None


def _heads(
    state: State,
    first: list[str],
    dims: list[int],
    depths: tuple[int, ...],
    settings: Mapping[str, Any],
    result: Recognition,
) -> tuple[tuple[int, ...], str]:
    if "num_heads" in result.config:
        return tuple(result.config["num_heads"]), "hint"
    if "base_dims" in result.config:
        return tuple(dim // width for dim, width in zip(dims, result.config["base_dims"], strict=True)), "hint"
    for name in ("dictionary.projection", "dictionary.dynamic.projection", "projection"):
        if f"{first[0]}attn.{name}" in state:
            shapes = [state[f"{block}attn.{name}"].shape for block in first]
            if "num_features" not in result.config and shapes[0][2] != 2 * shapes[0][1]:
                result.settle("num_features", shapes[0][2], "shapes")
            return tuple(shape[0] for shape in shapes), "shapes"
    if (scale := _known_scale(dims, depths)) is not None:
        return SCALES[scale]["num_heads"], f"those of rvt_{scale}, whose width and depth these are"
    if (stored := _setting(settings, "num_heads")) is not None:
        return tuple(stored), "stored in the file"
    if result.config["attention"] == "vars-s":
        return (1,) * len(dims), "VARS-S has no heads; this stands for any"
    raise CheckpointError(
        f"softmax attention {dims} wide: the number of heads leaves no trace in a state dict, and this is none of the "
        "known scales; give the hint num_heads=(...), one number per stage"
    )


def _revision(state: State, settings: Mapping[str, Any], result: Recognition) -> None:
    attention = result.config["attention"]
    if any(key.endswith("attn.learned.factor") for key in state):
        result.settle("revision", "learned", "keys")
    elif any(key.endswith("attn.learned.mixing") for key in state):
        result.config["attention"] = f"{attention}-dictionary"
        result.found.append(f"attention={result.config['attention']!r} (keys)")
    elif attention in ("vars-d", "vars-sd"):
        result.settle("revision", "paper", "no learned recurrence among the keys")
    era = _ERAS.get(str(settings.get("era")))
    if era is not None and result.config.get("revision", era[0]) == era[0]:
        result.settle("revision", era[0], "stored in the file")
        if attention not in ("self-attention", "vars-s"):
            result.settle("normalize_queries", era[1], "stored in the file")
    if attention == "performer" and "revision" not in result.config and "normalize_queries" not in result.config:
        result.settle("revision", "learned", "default: nothing in the keys tells, this is the latest")
    open_question = attention == "performer" or result.config.get("revision") == "learned"
    if open_question and attention not in ("self-attention", "vars-s") and "normalize_queries" not in result.config:
        taken = result.config.get("revision") == "learned"
        result.ambiguous.append(NORMALIZATION.format(taken=taken, other=not taken))


def _img_size(state: State, settings: Mapping[str, Any], result: Recognition) -> None:
    if "img_size" in result.config:
        return
    stored = _setting(settings, "img_size")
    patch = result.config["patch_size"]
    block = "stages.0.blocks.0.attn."
    if (kernel := state.get(f"{block}kernel")) is not None:
        height, half = kernel.shape[2], kernel.shape[3]
        widths = (2 * half - 2, 2 * half - 1)
        size = (patch * height, patch * (height if height in widths else widths[0]))
        if stored is None and height not in widths:
            result.ambiguous.append(f"filters {half} frequencies wide are {widths} tokens wide; taken: {widths[0]}")
        result.settle("img_size", _square(stored or size), "shapes" if stored is None else "stored in the file")
        if kernel.shape[1] != 5:
            result.settle("num_filters", kernel.shape[1], "shapes")
        return
    grid_keys = {"dictionary.static": 1, "position_scale": 2}
    for name, axis in grid_keys.items():
        if (template := state.get(block + name)) is not None and stored is None:
            side = math.isqrt(template.shape[axis])
            if side * side != template.shape[axis]:
                raise CheckpointError(
                    f"static templates on {template.shape[axis]} tokens, which is no square grid; give the hint "
                    "img_size=(H, W)"
                )
            stored = patch * side
            result.settle("img_size", stored, "shapes")
    if stored is not None:
        result.settle("img_size", _square(stored), "stored in the file")


def _square(size: Any) -> int | tuple[int, ...]:
    if isinstance(size, int):
        return size
    size = tuple(size)
    return size[0] if size[0] == size[1] else size


def _setting(settings: Mapping[str, Any], name: str) -> Any:
    """A setting under any of its names, where it is of the kind that is expected."""
    for key in _SETTING_NAMES[name]:
        value = settings.get(key)
        if name in ("sparsity", "num_steps"):
            if isinstance(value, str | int | float) and re.fullmatch(r"\d+(\.\d+)?", str(value)):
                return float(value) if name == "sparsity" else int(value)
        elif isinstance(value, tuple | list) and value and all(isinstance(item, int) for item in value):
            return tuple(value)
        elif name == "img_size" and isinstance(value, int):
            return value
    return None


def _flatten(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with a literal `config` opened up, as in metadata, which can hold text alone."""
    config = settings.get("config")
    if isinstance(config, str):
        try:
            config = ast.literal_eval(config)
        except (ValueError, SyntaxError):
            config = None
    return {**settings, **config} if isinstance(config, dict) else dict(settings)
