"""Models side by side on the same images: accuracies over seeds, and paired differences with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from torch import nn

from vars_ode.analysis.measurement import Measurement
from vars_ode.plotting import COLOURS, MARKERS, SMALL, literal, new_figure, tidy
from vars_ode.robustness import Outcome, outcomes
from vars_ode.statistics import Difference, Spread, holm, paired_difference

MEAN = "mean of corruptions"
Key = tuple[str, int]  # condition, severity
Models = Mapping[str, nn.Module | Sequence[nn.Module]]


class Against(NamedTuple):
    """One model's difference to the baseline in one measure; `p_holm` is corrected for all of a comparison."""

    name: str
    measure: str
    difference: Difference
    p_holm: float


@dataclass(frozen=True, eq=False)
class Comparison(Measurement):
    """What `compare` returns.

    Attributes:
        runs: by name, for each seed what was answered under each condition.
        baseline: the name that the others are compared to.
    """

    runs: Mapping[str, tuple[Mapping[Key, Outcome], ...]]
    baseline: str

    @staticmethod
    def of(found: Mapping[str, Sequence[Sequence[Outcome]]], baseline: str | None = None) -> Comparison:
        """Of outcomes by name and seed, such as those of evaluated runs.

        Args:
            found: by name, a list for each seed.
            baseline: a name; the first by default.

        Raises:
            ValueError: nothing to compare, an unknown baseline, or other images in one run than in another.
        """
        runs = {
            name: tuple({(o.condition, o.severity): o for o in of_seed} for of_seed in seeds)
            for name, seeds in found.items()
        }
        if not runs or not all(runs.values()):
            raise ValueError("there is nothing to compare; give at least one evaluated model for each name")
        baseline = next(iter(runs)) if baseline is None else baseline
        if baseline not in runs:
            raise ValueError(f"the baseline {baseline!r} is none of {', '.join(runs)}")
        _check_images(runs)
        return Comparison(runs, baseline)

    @property
    def conditions(self) -> tuple[Key, ...]:
        """Those that every run has, in the order of the first."""
        first, *others = (run for seeds in self.runs.values() for run in seeds)
        return tuple(key for key in first if all(key in other for other in others))

    @property
    def left_out(self) -> tuple[Key, ...]:
        """Conditions that only some runs have."""
        every = {key for seeds in self.runs.values() for run in seeds for key in run}
        return tuple(sorted(every - set(self.conditions)))

    @property
    def measures(self) -> dict[str, tuple[Key, ...]]:
        """The conditions whose mean each measure is: clean, mean of corruptions, single corruptions, attacks."""
        by_name: dict[str, list[Key]] = {}
        for key in self.conditions:
            by_name.setdefault(key[0], []).append(key)
        corruptions = [key for key in self.conditions if key[1] > 0]
        found = {name: tuple(keys) for name, keys in by_name.items()}
        if len({name for name, _ in corruptions}) < 2:
            return found
        clean = {name: found.pop(name) for name in ("clean",) if name in found}
        return {**clean, MEAN: tuple(corruptions), **found}

    def scores(self, name: str, measure: str) -> np.ndarray:
        """(seeds, images): the share of a measure's conditions under which an image was recognised."""
        keys = self.measures[measure]
        sizes = {len(run[key]) for run in self.runs[name] for key in keys}
        if len(sizes) > 1:  # conditions on different images: those of all, weighted so that conditions count equally
            total = sum(len(self.runs[name][0][key]) for key in keys)
            weights = {key: total / (len(keys) * len(self.runs[name][0][key])) for key in keys}
            each = [[weights[key] * run[key].correct.numpy() for key in keys] for run in self.runs[name]]
            return np.stack([np.concatenate(one) for one in each])
        return np.stack([np.mean([run[key].correct.numpy() for key in keys], axis=0) for run in self.runs[name]])

    def accuracy(self, name: str, measure: str) -> Spread:
        """Over seeds, as fractions."""
        return Spread.of(
            float(np.mean([run[key].accuracy for key in self.measures[measure]])) for run in self.runs[name]
        )

    @cached_property
    def differences(self) -> tuple[Against, ...]:
        """Of every other model to the baseline in every measure, in fractions, with 95 % intervals."""
        pairs = [(name, measure) for name in self.runs if name != self.baseline for measure in self.measures]
        found = [
            paired_difference(self.scores(name, measure), self.scores(self.baseline, measure))
            for name, measure in pairs
        ]
        corrected = holm([difference.p for difference in found])
        return tuple(Against(*pair, difference, p) for pair, difference, p in zip(pairs, found, corrected, strict=True))

    def to_rows(self) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "seed": seed,
                "condition": condition,
                "severity": severity,
                "accuracy": run[condition, severity].accuracy,
                "images": len(run[condition, severity]),
            }
            for name, seeds in self.runs.items()
            for seed, run in enumerate(seeds)
            for condition, severity in self.conditions
        ]

    def difference_rows(self) -> list[dict[str, Any]]:
        """A row for each of `differences`, in percentage points."""
        return [
            {
                "name": name,
                "baseline": self.baseline,
                "measure": measure,
                "difference": 100 * found.mean,
                "low": 100 * found.low,
                "high": 100 * found.high,
                "p": found.p,
                "p_holm": p_holm,
                "seeds": found.seeds,
                "images": found.images,
            }
            for name, measure, found, p_holm in self.differences
        ]

    def findings(self) -> list[str]:
        sentences = [self._finding(against) for against in self.differences if against.measure in self._headlines]
        single = min(len(seeds) for seeds in self.runs.values()) == 1
        if single and len(self.runs) > 1:
            sentences.append(
                "Some have one seed: the intervals are over images alone, and another training may differ by more."
            )
        if self.left_out:
            names = ", ".join(f"{name} at {severity}" if severity else name for name, severity in self.left_out)
            sentences.append(f"Not in every run, and left out: {names}.")
        return sentences

    @property
    def _headlines(self) -> set[str]:
        attacks = {name for name, severity in self.conditions if severity == 0}
        return {"clean", MEAN} | attacks

    def _finding(self, against: Against) -> str:
        name, measure, found, p_holm = against
        verdict = "" if p_holm < 0.05 else "; that is no significant difference after correction"
        return (
            f"{name} against {self.baseline}, {readable(measure)}: {100 * found.mean:+.1f} points, 95 % interval "
            f"{100 * found.low:+.1f} to {100 * found.high:+.1f} (p = {p_holm:.3g} by Holm{verdict})."
        )

    def plot(self) -> Figure:
        """Accuracies by measure, and differences to the baseline with their intervals."""
        measures = list(self.measures)
        lanes = len(self.runs) * 0.16 + 0.22
        figure = new_figure(8.0, 1.3 + lanes * len(measures))
        left, right = figure.subplots(1, 2, sharey=True)
        tidy(left, "accuracy (%)")
        tidy(right, f"difference to {literal(self.baseline)} (points)")
        right.axvline(0, color="#444444", lw=1)
        for rank, name in enumerate(self.runs):
            offset = (rank - (len(self.runs) - 1) / 2) * 0.8 / len(self.runs)
            style = {"color": "black" if name == self.baseline else COLOURS[rank % len(COLOURS)]}
            style |= {"marker": MARKERS[rank % len(MARKERS)]}
            self._draw(left, right, name, measures, offset, style)
        left.set_yticks(range(len(measures)), [literal(readable(measure)) for measure in measures], fontsize=SMALL)
        left.invert_yaxis()
        handles, labels = left.get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside upper center", ncols=min(4, len(labels)), frameon=False, fontsize=10
        )
        return figure

    def _draw(
        self, left: Any, right: Any, name: str, measures: Sequence[str], offset: float, style: Mapping[str, str]
    ) -> None:
        for place, measure in enumerate(measures):
            spread, y = self.accuracy(name, measure), place + offset
            left.plot([100 * spread.low, 100 * spread.high], [y, y], color=style["color"], lw=1.5)
            label = literal(name) if place == 0 else None
            left.plot(100 * spread.mean, y, ls="none", ms=6, mfc="white", mew=1.5, label=label, **style)
        for against in self.differences:
            if against.name == name:
                y, found = measures.index(against.measure) + offset, against.difference
                right.plot([100 * found.low, 100 * found.high], [y, y], color=style["color"], lw=1.5)
                right.plot(100 * found.mean, y, ls="none", ms=6, mfc="white", mew=1.5, **style)


def readable(measure: str) -> str:
    """A measure's name in words."""
    return measure.upper() if measure in ("fgsm", "pgd") else measure.replace("_", " ")


def compare(
    models: Models,
    data: Any,
    conditions: Sequence[str] | None = None,
    severities: Sequence[int] = (1, 2, 3),
    *,
    baseline: str | None = None,
    **options: Any,
) -> Comparison:
    """Measure models on the same images, under the same noise, and compare them.

    Args:
        models: by name; a sequence of models where there are several seeds. Each takes images in [0, 1].
        data: a data set of (image, label), or batches.
        conditions: as for `vars_ode.robustness.outcomes`: "clean", corruptions and attacks; None for all of these.
        severities: of the corruptions.
        baseline: the name that the others are compared to; the first by default.
        options: further arguments of `vars_ode.robustness.outcomes`, such as attacks, seed, batch_size and device.

    Raises:
        ValueError: as `outcomes`, and for no models or an unknown baseline.
    """
    if baseline is not None and baseline not in models:
        raise ValueError(f"the baseline {baseline!r} is none of {', '.join(models)}")
    found = {
        name: [list(outcomes(model, data, conditions, severities, **options)) for model in _seeds(given)]
        for name, given in models.items()
    }
    return Comparison.of(found, baseline)


def _seeds(given: nn.Module | Sequence[nn.Module]) -> Iterator[nn.Module]:
    yield from [given] if isinstance(given, nn.Module) else given


def _check_images(runs: Mapping[str, tuple[Mapping[Key, Outcome], ...]]) -> None:
    known: dict[Key, tuple[str, Outcome]] = {}
    for name, seeds in runs.items():
        for run in seeds:
            for key, outcome in run.items():
                first, other = known.setdefault(key, (name, outcome))
                same = len(outcome) == len(other) and bool((outcome.indices == other.indices).all())
                if not same or not bool((outcome.labels == other.labels).all()):
                    raise ValueError(
                        f"{name} and {first} were measured on other images under {key[0]!r} (severity {key[1]}); "
                        "evaluate both on the same data, with the same number of images"
                    )
