"""What `vars-ode train` is told: model, data and augmentation beside the recipe, by the names of timm's script."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

import solvers
from vars_ode.training.horizon import parse_horizon
from vars_ode.training.recipe import Recipe

PUBLISHED: Mapping[str, Any] = {  # of the VARS authors for ImageNet-1k; where they are silent, DeiT's, which it follows
    "epochs": 300,
    "batch_size": 64,
    "opt": "adamw",
    "weight_decay": 0.05,
    "lr_base": 5e-4,
    "lr_base_size": 512,
    "sched": "cosine",
    "warmup_epochs": 5.0,
    "warmup_lr": 1e-6,
    "min_lr": 1e-5,
    "clip_grad": None,
    "aa": "rand-m9-mstd0.5-inc1",
    "train_interpolation": "bicubic",
    "mixup": 0.8,
    "cutmix": 1.0,
    "smoothing": 0.1,
    "reprob": 0.25,
    "remode": "pixel",
    "aug_repeats": 3,
    "drop_path": 0.1,
    "model_ema": True,
    "model_ema_decay": 0.99996,
    "holdout": 0.01,
}
LIGHT: Mapping[str, Any] = {
    "epochs": 10,
    "batch_size": 50,
    "scale": (0.6, 1.0),
    "color_jitter": 0.0,
    "aa": None,
    "holdout": 0.1,
}
PRESETS = {"published": PUBLISHED, "light": LIGHT}
LARGE = 100_000  # training images from which on the published recipe is the default
FREE = ("workers", "device", "log_with", "checkpoint_every", "validation_batch_size")  # change no result


@dataclass(frozen=True)
class TrainingConfig:
    """A training from the command line. Names and meanings are those of timm's training script where it has them.

    Args:
        data: a folder with train/ and val/ (one subfolder of pictures per class; test/ too, where val/ is to choose the
            best epoch), "fashion-mnist" (embedded), or a data set of `timm.data.create_dataset`, such as
            "torch/cifar10", in the folder data_dir.
        data_dir: where a data set of timm's name lies.
        dataset_download: let timm download it.
        train_split, val_split: names of the splits of a data set of timm's name.
        holdout: share of the training images that choose the best epoch; the test images never do. Not used where the
            folder has val/ and test/.
        model: a name of timm's, rvt_tiny among them.
        attention: out of `vars-ode models --attentions`; None for the model's own.
        attention_kwargs: options of the attention, such as sparsity=0.1.
        model_kwargs: arguments of the model, such as embed_dim=64.
        solver: the solve of the VARS layers, NAME@TIME in steps of dt = 1, such as euler@5.
        adjoint: how gradients go through it: direct, checkpointed, implicit, truncated.
        init: a saved or converted model to start from.
        num_classes: by default those of the data.
        img_size: pixels a side; by default the model's.
        in_chans: channels; by default 3, and 1 for fashion-mnist.
        drop: dropout before the head.
        drop_path: stochastic depth.
        preset: "published", the recipe of the VARS authors for ImageNet, or "light" for small data: the defaults of
            everything else. By default by the number of training images.
        lr_base: learning rate for lr_base_size images per update; it grows in proportion. Used where lr is not given.
        lr_base_size: see lr_base.
        no_aug: no augmentation.
        scale, ratio: area and aspect of random crops.
        hflip, vflip: probabilities.
        color_jitter: its strength.
        aa: AutoAugment policy, such as rand-m9-mstd0.5-inc1.
        reprob, remode, recount: random erasing: probability, "const", "rand" or "pixel", count.
        train_interpolation: of random crops: "random", "bilinear" or "bicubic".
        mean, std: of the normalisation, per channel; by default the model's, and none for fashion-mnist.
        crop_pct, interpolation: of test images; by default the model's.
        skip_unreadable: take the next training image for one whose file cannot be read, and count it; leave held-out
            and test images out that cannot be.
        seed: of weights, order, augmentation, dropout and horizons.
        workers: processes that read images, per process.
        validation_batch_size: images per batch when measuring.
        checkpoint_every: updates ("500") or minutes ("10m") between checkpoints, beside one after each epoch.
        device: "cpu" or "cuda"; by default a GPU where there is one.
        log_with: trackers of Accelerate, such as tensorboard or wandb.
        recipe: everything else.
    """

    data: str = "fashion-mnist"
    data_dir: str | None = None
    dataset_download: bool = False
    train_split: str = "train"
    val_split: str = "validation"
    holdout: float = 0.1
    model: str | None = None
    attention: str | None = None
    attention_kwargs: dict[str, Any] = field(default_factory=dict)
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    solver: str | None = None
    adjoint: str | None = None
    init: str | None = None
    num_classes: int | None = None
    img_size: int | None = None
    in_chans: int | None = None
    drop: float = 0.0
    drop_path: float = 0.0
    preset: str | None = None
    lr_base: float | None = None
    lr_base_size: int = 512
    no_aug: bool = False
    scale: tuple[float, ...] = (0.08, 1.0)
    ratio: tuple[float, ...] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float = 0.4
    aa: str | None = None
    reprob: float = 0.0
    remode: str = "pixel"
    recount: int = 1
    train_interpolation: str = "random"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    skip_unreadable: bool = False
    seed: int = 0
    workers: int = 0
    validation_batch_size: int = 256
    checkpoint_every: str | None = None
    device: str | None = None
    log_with: tuple[str, ...] = ()
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        if (self.model is None) == (self.init is None):
            raise ValueError(
                f"a training needs a model, such as rvt_tiny, or init, a saved one; got model={self.model!r} and "
                f"init={self.init!r}"
            )
        if not 0 <= self.holdout < 1:
            raise ValueError(f"holdout is the share of images that are not trained on, from 0 to 1, got {self.holdout}")
        if self.device is not None:
            solvers.checks.one_of("device", self.device, ("cpu", "cuda"))
        for name in ("scale", "ratio"):
            if len(getattr(self, name)) != 2:
                raise ValueError(f"{name} is a pair of numbers, from and to, got {getattr(self, name)}")
        every(self.checkpoint_every)

    def as_dict(self) -> dict[str, Any]:
        """One flat dict of plain values, which `from_dict` reads."""
        values = asdict(self)
        recipe = {**values.pop("recipe"), "horizon": str(self.recipe.horizon)}
        return {name: _plain(value) for name, value in {**values, **recipe}.items()}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> TrainingConfig:
        """The configuration by names of its own fields and of the recipe's.

        Raises:
            ValueError: an unknown name, with the nearest, or an invalid value.
        """
        stored = checked(stored)
        own, of_recipe = _names(cls) - {"recipe"}, _names(Recipe)
        recipe = {name: value for name, value in stored.items() if name in of_recipe}
        if isinstance(recipe.get("horizon"), str):
            recipe["horizon"] = parse_horizon(recipe["horizon"])
        return cls(**{name: value for name, value in stored.items() if name in own}, recipe=Recipe(**recipe))

    def differences(self, stored: Mapping[str, Any]) -> list[str]:
        """In words, what in `stored`, a result of `as_dict`, would give other weights."""
        own = self.as_dict()
        names = sorted((own.keys() | stored.keys()) - set(FREE))
        return [f"{n} {stored.get(n)!r} there, {own.get(n)!r} now" for n in names if stored.get(n) != own.get(n)]


def checked(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Names with underscores, lists as tuples; a ValueError for a name that is none, or a value of another kind."""
    known = {item.name: item for cls in (Recipe, TrainingConfig) for item in fields(cls)}
    del known["recipe"]
    result = {}
    for given, value in stored.items():
        name = str(given).replace("-", "_")
        solvers.checks.one_of("setting of a training", name, sorted(known))
        kind = _kind(known[name].type)
        value = tuple(value) if isinstance(value, list) and "tuple" in kind else value
        if not _fits(value, kind):
            raise ValueError(f"{name} is a setting of type {kind}, got {value!r}")
        result[name] = float(value) if kind.startswith("float") and isinstance(value, int) else value
    return result


def resolved(given: Mapping[str, Any], training_images: int, images_per_batch: int) -> TrainingConfig:
    """The configuration with what was not given out of its preset, and the learning rate scaled to the batch.

    Args:
        given: by names, as from a file and the command line.
        training_images: how many there are, which chooses the preset.
        images_per_batch: processes and accumulation steps: the factor from the batch size to images per update.
    """
    given = checked(given)
    preset = given.get("preset") or ("published" if training_images >= LARGE else "light")
    solvers.checks.one_of("preset", preset, PRESETS)
    values = {**PRESETS[preset], **given, "preset": preset}
    if given.get("lr") is None and values.get("lr_base") is not None:
        size = values.get("lr_base_size", TrainingConfig.lr_base_size)
        values["lr"] = values["lr_base"] * values["batch_size"] * images_per_batch / size
    return TrainingConfig.from_dict(values)


def read_config(path: Path) -> dict[str, Any]:
    """Settings of a training from a YAML file.

    Raises:
        ValueError: it cannot be read, or holds no settings by name.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read the settings in {path}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no settings by name, such as 'epochs: 8'")
    return checked(content)


def every(text: str | None) -> tuple[int | None, float | None]:
    """Updates and minutes between checkpoints, out of "500" or "10m"."""
    if text is None:
        return None, None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(m?)", str(text))
    if match is None or float(match[1]) == 0 or (not match[2] and "." in match[1]):
        raise ValueError(f'checkpoint_every is a number of updates, "500", or of minutes, "10m", got {text!r}')
    return (None, float(match[1])) if match[2] else (int(match[1]), None)


def described(cls: type) -> dict[str, str]:
    """What the docstring of a dataclass says of each argument."""
    lines = (cls.__doc__ or "").partition("Args:\n")[2].splitlines()
    found: dict[str, str] = {}
    names: list[str] = []
    for line in lines:
        entry = re.match(r" {8}((?:\w+, )*\w+): (.*)", line)
        if entry:
            names = entry[1].split(", ")
            found |= dict.fromkeys(names, entry[2])
        elif names and line.startswith(" " * 12):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def _names(cls: type) -> set[str]:
    return {item.name for item in fields(cls)}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


_TYPES: Mapping[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "dict": (dict,),
    "tuple": (tuple,),
    "bool": (bool,),
}


def _kind(declared: Any) -> str:
    """A field's type in words, whether its module postpones annotations or not."""
    return declared if isinstance(declared, str) else getattr(declared, "__name__", str(declared))


def _fits(value: Any, kind: str) -> bool:
    """Whether a value is of a field's declared kind. Other declarations, such as choices, are checked behind."""
    if value is None:
        return "None" in kind
    base = kind.split("[")[0].split(" ")[0]
    if base not in _TYPES:
        return isinstance(value, str) or base == "Horizon"
    if isinstance(value, bool) and base != "bool":
        return False
    return isinstance(value, _TYPES[base])
