"""Corruption errors relative to a baseline model, after Hendrycks and Dietterich 2019 (arXiv 1903.12261), section 4.

With E[c, s] a model's top-1 error under corruption c at severity s, and B[c, s] the baseline's:

    CE[c]          = sum_s E[c, s] / sum_s B[c, s]                            mCE          = 100 mean_c CE[c]
    relative CE[c] = sum_s (E[c, s] - E_clean) / sum_s (B[c, s] - B_clean)    relative mCE = 100 mean_c relative CE[c]
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from vars_ode.robustness.outcome import Outcome

__all__ = [
    "ALEXNET_IMAGENET_CLEAN_ERROR",
    "ALEXNET_IMAGENET_C_ERRORS",
    "corruption_errors",
    "mean_corruption_error",
    "relative_mean_corruption_error",
]

Errors = Mapping[str, Sequence[float]]

ALEXNET_IMAGENET_C_ERRORS: Errors = MappingProxyType(
    {
        "gaussian_noise": (0.886428,),
        "shot_noise": (0.894468,),
        "impulse_noise": (0.922640,),
        "defocus_blur": (0.819880,),
        "glass_blur": (0.826268,),
        "motion_blur": (0.785948,),
        "zoom_blur": (0.798360,),
        "snow": (0.866816,),
        "frost": (0.826572,),
        "fog": (0.819324,),
        "brightness": (0.564592,),
        "contrast": (0.853204,),
        "elastic_transform": (0.646056,),
        "pixelate": (0.717840,),
        "jpeg_compression": (0.606500,),
    }
)
"""AlexNet's top-1 error on ImageNet-C as a fraction, the mean over the five severities, from the repository of the
paper (github.com/hendrycks/robustness). It is a baseline for errors on ImageNet-C itself, and for no other images: give
each corruption's mean error over the five severities, as a sequence of one."""

ALEXNET_IMAGENET_CLEAN_ERROR = 0.435
"""AlexNet's top-1 error on the clean ImageNet validation set as a fraction (table 1 of the paper: 43.5 %)."""


def mean_corruption_error(errors: Errors, baseline: Errors) -> float:
    """The mean corruption error (mCE) in percent: 100 for a model as bad as the baseline, lower is better.

    Args:
        errors: for each corruption the errors at its severities. Fractions or percent, but the same in both arguments.
        baseline: the same corruptions and severities for the baseline, such as a model of one's own or AlexNet on
            ImageNet-C.

    Raises:
        ValueError: where corruptions or numbers of severities differ, an error is negative or not finite, or the
            baseline makes no error under some corruption, so that the ratio does not exist.
    """
    return _mean_ratio(errors, baseline, 0.0, 0.0)


def relative_mean_corruption_error(
    errors: Errors, baseline: Errors, clean_error: float, baseline_clean_error: float
) -> float:
    """The relative mCE in percent: how much accuracy corruption *costs*, compared with what it costs the baseline.

    Args:
        errors: as in `mean_corruption_error`.
        baseline: as in `mean_corruption_error`.
        clean_error: the model's error on clean images, in the unit of `errors`.
        baseline_clean_error: the baseline's error on clean images.

    Raises:
        ValueError: as `mean_corruption_error`, and where some corruption does not raise the baseline's error.
    """
    for value in (clean_error, baseline_clean_error):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"got a clean error of {value!r}; expected a finite number of at least 0.")
    return _mean_ratio(errors, baseline, clean_error, baseline_clean_error)


def corruption_errors(results: Iterable[Outcome | Mapping[str, Any]]) -> dict[str, tuple[float, ...]]:
    """Errors by corruption, in the order of severity: what `mean_corruption_error` takes.

    Args:
        results: the outcomes of `outcomes` or the rows of `evaluate`. Those of severity 0 (clean images and attacks)
            are left out.

    Returns:
        For each corruption its errors, 1 - accuracy, as fractions.

    Raises:
        ValueError: where a condition and severity occurs twice, as when rows of two models are mixed.
    """
    found: dict[str, dict[int, float]] = {}
    for result in results:
        row = result.row if isinstance(result, Outcome) else result
        if row["severity"] == 0:
            continue
        by_severity = found.setdefault(row["condition"], {})
        if row["severity"] in by_severity:
            raise ValueError(
                f"corruption_errors got {row['condition']!r} at severity {row['severity']} twice; give the results of "
                "one model only."
            )
        by_severity[row["severity"]] = 1 - row["accuracy"]
    return {name: tuple(by_severity[s] for s in sorted(by_severity)) for name, by_severity in found.items()}


def _mean_ratio(errors: Errors, baseline: Errors, clean: float, baseline_clean: float) -> float:
    _check(errors, baseline)
    ratios = []
    for name in errors:
        count = len(errors[name])
        excess = math.fsum(errors[name]) - count * clean
        reference = math.fsum(baseline[name]) - count * baseline_clean
        if reference <= 0:
            raise ValueError(
                f"the baseline's error under {name!r} sums to {reference:g} (above its clean error, if one was given); "
                "the ratio needs a positive number. Leave this corruption out of both, or choose another baseline."
            )
        ratios.append(excess / reference)
    return 100 * math.fsum(ratios) / len(ratios)


def _check(errors: Errors, baseline: Errors) -> None:
    if not errors:
        raise ValueError("got no errors; expected at least one corruption.")
    if errors.keys() != baseline.keys():
        missing, extra = sorted(baseline.keys() - errors.keys()), sorted(errors.keys() - baseline.keys())
        raise ValueError(
            f"errors and baseline must hold the same corruptions; only in the baseline: {missing}, only in the errors: "
            f"{extra}. A mean over other corruptions is another number."
        )
    for name in errors:
        if not (isinstance(errors[name], Sequence) and isinstance(baseline[name], Sequence)):
            raise ValueError(
                f"{name!r} must hold a sequence of errors, one per severity, in both; a single one as (x,)."
            )
        if len(errors[name]) != len(baseline[name]) or len(errors[name]) == 0:
            raise ValueError(
                f"{name!r} has {len(errors[name])} errors and {len(baseline[name])} in the baseline; expected one per "
                "severity in both. If one is a mean over severities, give the mean of the other too."
            )
        for value in (*errors[name], *baseline[name]):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name!r} has the error {value!r}; expected finite numbers of at least 0.")
