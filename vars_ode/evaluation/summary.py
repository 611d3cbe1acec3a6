"""Accuracies and corruption errors of an evaluation, also relative to another."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping
from typing import Any

from vars_ode.data import IMAGENET_C
from vars_ode.evaluation.masking import masking_summary
from vars_ode.evaluation.storage import Evaluation, Key, errors_of
from vars_ode.robustness import (
    ALEXNET_IMAGENET_C_ERRORS,
    ALEXNET_IMAGENET_CLEAN_ERROR,
    Outcome,
    mean_corruption_error,
    relative_mean_corruption_error,
)

CLEAN = Key("clean", "clean", 0)
Outcomes = Mapping[Key, Outcome]


def summarise(
    outcomes: Outcomes, num_classes: int, baseline: Evaluation | None = None, made: Collection[str] = ()
) -> dict[str, Any]:
    """What a reader wants first, in JSON's types.

    Args:
        outcomes: what was measured.
        num_classes: of the model.
        baseline: another evaluation.
        made: the benchmarks whose pictures were made of the clean ones, and not read.

    Returns:
        "clean_accuracy"; "accuracy" of each condition without severities, by "benchmark/condition"; "corruptions" by
        benchmark: "images" ("read" or "made"), mean accuracy and, where they can be told, "mce" and "relative_mce" by
        AlexNet's errors, otherwise "mce_missing" says why; "masking"; "baseline": the same relative to another
        evaluation.
    """
    clean = outcomes.get(CLEAN)
    singles = {key: outcome for key, outcome in outcomes.items() if not key.severity and key != CLEAN}
    benchmarks = list(dict.fromkeys(key.benchmark for key in outcomes if key.severity))
    found: dict[str, Any] = {
        "clean_accuracy": None if clean is None else clean.accuracy,
        "accuracy": {_name(key): outcome.accuracy for key, outcome in singles.items()},
        "corruptions": {
            name: {"images": "made" if name in made else "read", **_corruptions(outcomes, name, num_classes)}
            for name in benchmarks
        },
        "masking": masking_summary(outcomes),
    }
    if baseline is not None:
        found["baseline"] = {name: relative_to(outcomes, baseline, name) for name in benchmarks}
    return found


def _name(key: Key) -> str:
    return key.benchmark if key.benchmark == key.condition else f"{key.benchmark}/{key.condition}"


def _corruptions(outcomes: Outcomes, benchmark: str, num_classes: int) -> dict[str, Any]:
    errors = errors_of(outcomes, benchmark)
    means = {name: statistics.fmean(values) for name, values in errors.items()}
    counted = {name: error for name, error in means.items() if name in IMAGENET_C} or means
    found: dict[str, Any] = {
        "mean_accuracy": 1 - statistics.fmean(counted.values()),
        "mean_error": means,
    }
    missing = why_no_mce(errors, benchmark, num_classes)
    if missing:
        return {**found, "mce_missing": missing}
    ours = {name: (means[name],) for name in IMAGENET_C}
    found["mce"] = mean_corruption_error(ours, ALEXNET_IMAGENET_C_ERRORS)
    if CLEAN in outcomes:
        found["relative_mce"] = relative_mean_corruption_error(
            ours, ALEXNET_IMAGENET_C_ERRORS, 1 - outcomes[CLEAN].accuracy, ALEXNET_IMAGENET_CLEAN_ERROR
        )
    return found


def why_no_mce(errors: Mapping[str, tuple[float, ...]], benchmark: str, num_classes: int) -> str:
    """Why errors cannot be related to AlexNet's; empty where they can."""
    if benchmark != "imagenet-c":
        return "AlexNet's errors are on ImageNet-C; give --baseline"
    if num_classes != 1000:
        return f"AlexNet's errors are on ImageNet's 1,000 classes, and the model has {num_classes}; give --baseline"
    absent = [name for name in IMAGENET_C if len(errors.get(name, ())) != 5]
    if absent:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        return f"not all of ImageNet-C: five severities are needed of {', '.join(absent[:3])}{more}"
    return ""


def relative_to(outcomes: Outcomes, baseline: Evaluation, benchmark: str) -> dict[str, Any]:
    """mCE and relative mCE by another model's errors on the same images, or "missing": why they cannot be told."""
    both = [key for key in outcomes if key.benchmark == benchmark and key.severity]
    absent = [key for key in both if key not in baseline.outcomes]
    if absent:
        return {"missing": f"the baseline was not measured under {absent[0]}"}
    other = next((k for k in both if not outcomes[k].indices.equal(baseline.outcomes[k].indices)), None)
    if other is not None:
        return {"missing": f"the baseline was measured on other images under {other}"}
    errors = errors_of(outcomes, benchmark)
    theirs = errors_of({key: baseline.outcomes[key] for key in both}, benchmark)
    found: dict[str, Any] = {}
    try:
        found["mce"] = mean_corruption_error(errors, theirs)
        if CLEAN in outcomes and CLEAN in baseline.outcomes:
            clean, their_clean = (1 - kept[CLEAN].accuracy for kept in (outcomes, baseline.outcomes))
            found["relative_mce"] = relative_mean_corruption_error(errors, theirs, clean, their_clean)
    except ValueError as error:  # such as a baseline without errors
        found["missing"] = str(error)
    return found
