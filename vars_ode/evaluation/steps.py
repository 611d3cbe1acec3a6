"""The passes over data that conditions stand for. A new kind of condition is a function and a row in `_GROUPS`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import solvers
from vars_ode.data import BENCHMARKS, EvaluationSet, Preprocessing, clean_set, open_benchmark
from vars_ode.evaluation.masking import masking_attacks
from vars_ode.evaluation.settings import ATTACKS, CLEAN, MASKING, SMALL, EvaluationSettings
from vars_ode.evaluation.storage import Key
from vars_ode.robustness import autoattack, available, fgsm, frost_with, pgd, registered, require_autoattack, square
from vars_ode.robustness.corruptions import Corruption

Attack = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]  # (model, images, labels, indices)
IMAGENET_C, MADE = "imagenet-c", "made of"
_SMALLEST = 112  # pixels, below which ImageNet-C's lengths make no sense


@dataclass(frozen=True)
class Step:
    """One pass over data.

    Args:
        key: how its result is called.
        data: the pictures.
        corruption: done to each picture where it is loaded.
        attack: done to each batch.
        settings: what the result depends on, beside the model and what all results depend on; in JSON's types.
    """

    key: Key
    data: EvaluationSet
    corruption: Corruption | None = None
    attack: Attack | None = None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a model, how pictures get into it, and how many classes it has."""

    model: nn.Module
    preprocessing: Preprocessing
    num_classes: int
    classes: tuple[str, ...] | None = None

    @property
    def classifier(self) -> nn.Module:
        """Of images in [0, 1]."""
        return self.preprocessing.normalized(self.model)


def plan(subject: Subject, settings: EvaluationSettings) -> list[Step]:
    """All passes, in the order of the conditions; folders are looked at, pictures not.

    Raises:
        ValueError: an unknown condition, or a folder or setting that does not fit the model.
    """
    where = (settings.data_dir, settings.split)
    clean = clean_set(settings.data, subject.preprocessing, subject.num_classes, subject.classes, *where)
    steps = [step for name in settings.conditions for step in _steps(name, subject, settings, clean)]
    return list({step.key: step for step in steps}.values())


def _steps(name: str, subject: Subject, settings: EvaluationSettings, clean: EvaluationSet) -> list[Step]:
    if name in _GROUPS:
        return _GROUPS[name](subject, settings, clean)
    known = [*_GROUPS, *available()]
    solvers.checks.one_of("condition", name, known)
    return _corrupted(name, subject, settings, clean)


def _clean(subject: Subject, settings: EvaluationSettings, clean: EvaluationSet) -> list[Step]:
    return [Step(Key(CLEAN, CLEAN, 0), clean)]


def _benchmark(name: str, subject: Subject, settings: EvaluationSettings, clean: EvaluationSet) -> list[Step]:
    if name not in settings.trees:
        raise ValueError(f"{name} needs its folder; give it with --{name} DIR")
    sets = open_benchmark(name, Path(settings.trees[name]), subject.preprocessing, subject.num_classes)
    wanted = settings.severities
    return [
        Step(Key(found.benchmark, found.condition, found.severity), found, settings={"source": found.source})
        for found in sets
        if wanted is None or found.severity in (0, *wanted)
    ]


def _imagenet_c(subject: Subject, settings: EvaluationSettings, clean: EvaluationSet) -> list[Step]:
    if IMAGENET_C in settings.trees:
        return _benchmark(IMAGENET_C, subject, settings, clean)
    return [step for name in available(IMAGENET_C) for step in _corrupted(name, subject, settings, clean)]


def _small(subject: Subject, settings: EvaluationSettings, clean: EvaluationSet) -> list[Step]:
    return [step for name in available(SMALL) for step in _corrupted(name, subject, settings, clean)]


def _corrupted(name: str, subject: Subject, settings: EvaluationSettings, clean: EvaluationSet) -> list[Step]:
    """The clean pictures under one corruption."""
    corruption, own = registered(name), {"source": f"{MADE} {clean.source}"}
    if name == "frost" and settings.frost is not None:
        corruption, own["frost"] = frost_with(settings.frost), settings.frost
    if corruption.family == IMAGENET_C and min(subject.preprocessing.size) < _SMALLEST:
        warnings.warn(
            f"the lengths of ImageNet-C's corruptions are made for 224 pixels, and the model takes "
            f"{' x '.join(map(str, subject.preprocessing.size))}; for small images there is the condition {SMALL!r}",
            UserWarning,
            stacklevel=2,
        )
    severities = range(1, len(corruption.strengths) + 1)
    wanted = settings.severities or tuple(severities)
    if not set(wanted) & set(severities):
        raise ValueError(f"{name} has the severities 1 to {len(severities)}, got {', '.join(map(str, wanted))}")
    benchmark = corruption.family or "corruptions"
    return [
        Step(Key(benchmark, name, severity), replace(clean, severity=severity), corruption, settings=own)
        for severity in wanted
        if severity in severities
    ]


def _attack(name: str, subject: Subject, settings: EvaluationSettings, clean: EvaluationSet) -> list[Step]:
    attack, own = named_attack(name, settings)
    return [Step(Key("attacks", name, 0), clean, attack=attack, settings=own)]


def named_attack(name: str, settings: EvaluationSettings) -> tuple[Attack, dict[str, Any]]:
    """An attack with its settings bound, and what it depends on."""
    ball: dict[str, Any] = {"eps": settings.eps, "norm": settings.norm}
    steps = {"step_size": settings.length_of_steps, "num_steps": settings.steps, "restarts": settings.restarts}
    if name == "fgsm":
        return (lambda model, images, labels, indices: fgsm(model, images, labels, **ball)), ball
    if name == "autoattack":
        require_autoattack()
    known: dict[str, tuple[Any, dict[str, Any]]] = {
        "pgd": (pgd, steps),
        "square": (square, {"num_queries": settings.queries}),
        "autoattack": (autoattack, {}),
    }
    function, own = known[name]
    bound = partial(function, seed=settings.seed, **ball, **own)
    return (lambda model, images, labels, indices: bound(model, images, labels, indices=indices)), {**ball, **own}


def _masking(subject: Subject, settings: EvaluationSettings, clean: EvaluationSet) -> list[Step]:
    pgd_attack, pgd_settings = named_attack("pgd", settings)
    square_attack, square_settings = named_attack("square", settings)
    steps = [
        Step(Key(MASKING, name, 0), clean, attack=attack, settings={**pgd_settings, **own})
        for name, attack, own in masking_attacks(subject.model, subject.preprocessing, settings, pgd_attack)
    ]
    return [*steps, Step(Key(MASKING, "square", 0), clean, attack=square_attack, settings=square_settings)]


_GROUPS: dict[str, Callable[[Subject, EvaluationSettings, EvaluationSet], list[Step]]] = {
    CLEAN: _clean,
    SMALL: _small,
    **{name: partial(_benchmark, name) for name in BENCHMARKS},
    IMAGENET_C: _imagenet_c,
    **{name: partial(_attack, name) for name in ATTACKS},
    MASKING: _masking,
}
"""What each condition that is no corruption stands for."""
CONDITIONS = tuple(_GROUPS)
