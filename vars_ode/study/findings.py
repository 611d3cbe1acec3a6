"""What a study found: scores of images, differences between its arms, and where the maps of the models look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from vars_ode.statistics import Difference, bootstrap, holm, paired_difference
from vars_ode.study.archive import Archive, Run

BASELINE = "softmax"
CLEAN = ("clean", 0)
WHITE_BOX = ("white-box", 0)
MEASURES = {
    "clean": "clean images",
    "corrupted": "mean of the corruptions",
    "kept": "corrupted images among those recognised when clean",
    "fgsm": "FGSM",
    "pgd": "PGD through the model's own solve",
    "attacks": "all attacks together",
    "occlusion": "occlusion",
    "translation": "translation",
}
CAUSES = ("clean", "corrupted", "kept", "pgd")  # of variations
Interval = tuple[float, float, float]  # mean, low, high


class Scores(NamedTuple):
    """(seeds, images), and what each counts."""

    values: np.ndarray
    weights: np.ndarray | None = None


class Found(NamedTuple):
    """A difference, and its p-value corrected for all of the family."""

    difference: Difference
    p: float

    @property
    def holds(self) -> bool:
        return self.p < 0.05


@dataclass(frozen=True)
class Findings:
    """An archive with its measures."""

    archive: Archive

    @cached_property
    def main(self) -> list[str]:
        """The arms of the main comparison: those that are no variation of another, the baseline first."""
        arms = self.archive.settings["arms"]
        return sorted((a for a in self.archive.arms if arms[a]["twin"] is None), key=lambda name: name != BASELINE)

    @property
    def ablations(self) -> dict[str, str]:
        """Arm -> the twin that it is a variation of."""
        arms = self.archive.settings["arms"]
        found = {name: arms[name]["twin"] for name in self.archive.arms if arms[name]["twin"] is not None}
        return {name: twin for name, twin in found.items() if twin in self.archive.arms}

    @cached_property
    def measures(self) -> list[str]:
        """Those of `MEASURES` for which all arms of the main comparison have the conditions."""
        needed = {"clean": [CLEAN], "corrupted": self.corrupted, "kept": self.corrupted, "fgsm": [("fgsm", 0)]}
        needed |= {"pgd": [WHITE_BOX], "attacks": [WHITE_BOX]}
        needed |= {shift: self.conditions([f"small_{shift}"]) for shift in ("occlusion", "translation")}
        measured = self.archive.measured
        return [m for m in MEASURES if all(measured(arm, c) for arm in self.main for c in needed[m])]

    def conditions(self, names: Sequence[str]) -> list[tuple[str, int]]:
        return [(name, severity) for name in names for severity in self.archive.settings["severities"]]

    @property
    def corrupted(self) -> list[tuple[str, int]]:
        return self.conditions(self.archive.settings["corruptions"])

    def attacks(self, arm: str) -> list[tuple[str, int]]:
        """The attacks that an arm was measured under; one without a solver is not attacked through another."""
        named = [key for keys in self.archive.conditions.values() for key in keys if key[1] == 0 and key != CLEAN]
        return [key for key in named if self.archive.measured(arm, key)]

    def scores(self, arm: str, measure: str, seeds: Sequence[int] | None = None) -> Scores:
        """Of each image under a measure."""

        def correct(conditions: Sequence[tuple[str, int]]) -> np.ndarray:
            return self.archive.correct(arm, conditions, seeds)

        if measure == "clean":
            return Scores(correct([CLEAN])[:, 0])
        if measure == "corrupted":
            return Scores(correct(self.corrupted).mean(1))
        if measure == "kept":
            clean = correct([CLEAN])
            return Scores((correct(self.corrupted) & clean).mean(1), clean[:, 0])
        if measure in ("occlusion", "translation"):
            return Scores(correct(self.conditions([f"small_{measure}"])).mean(1))
        if measure == "attacks":
            return Scores(np.asarray(correct(self.attacks(arm)).all(1)))
        return Scores(correct([WHITE_BOX if measure == "pgd" else (measure, 0)])[:, 0])

    def value(self, arm: str, measure: str) -> float:
        """The mean over seeds and images."""
        values, weights = self.scores(arm, measure)
        return float(np.average(values, weights=weights))

    def by_seed(self, arm: str, measure: str) -> np.ndarray:
        values, weights = self.scores(arm, measure)
        return np.asarray(np.average(values, axis=1, weights=weights))

    def common(self, *arms: str) -> list[int]:
        """The seeds that all have."""
        return sorted(set.intersection(*(set(self.archive.seeds(arm)) for arm in arms)))

    def difference(self, arm: str, other: str, measure: str) -> Difference:
        """Paired by seed and image."""
        seeds = self.common(arm, other)
        ours, theirs = (self.scores(each, measure, seeds) for each in (arm, other))
        return paired_difference(ours.values, theirs.values, our_weights=ours.weights, their_weights=theirs.weights)

    @cached_property
    def against_baseline(self) -> dict[tuple[str, str], Found]:
        """(arm, measure) -> the difference to the baseline, corrected for all of them."""
        pairs = [(arm, measure) for arm in self.main if arm != BASELINE for measure in self.measures]
        return _corrected({pair: self.difference(pair[0], BASELINE, pair[1]) for pair in pairs})

    @cached_property
    def against_twins(self) -> dict[tuple[str, str], Found]:
        """(ablation, measure) -> the difference to its twin."""
        pairs = [(arm, measure) for arm in self.ablations for measure in CAUSES if measure in self.measures]
        return _corrected({pair: self.difference(pair[0], self.ablations[pair[0]], pair[1]) for pair in pairs})

    def corruption_error(self, arm: str, relative: bool) -> Interval:
        """(relative) mCE in percent of the baseline's, with its bootstrap interval over seeds and images."""
        seeds = self.common(arm, BASELINE)
        wrong = {name: ~self.archive.correct(name, [CLEAN, *self.corrupted], seeds) for name in (arm, BASELINE)}
        count, images = len(seeds), wrong[arm].shape[-1]

        def of(ours: np.ndarray, theirs: np.ndarray, weights: np.ndarray) -> float:
            errors = [wrong[arm][ours].mean(0) @ weights, wrong[BASELINE][theirs].mean(0) @ weights]
            clean = [each[0] if relative else 0.0 for each in errors]
            severities = len(self.archive.settings["severities"])
            a, b = ((each[1:] - c).reshape(-1, severities).sum(1) for each, c in zip(errors, clean, strict=True))
            return float(100 * (a / b).mean())

        every, whole = np.arange(count), np.full(images, 1 / images)
        drawn = [of(*each) for each in bootstrap(count, count, images, 1000)]
        low, high = np.quantile(drawn, (0.025, 0.975))
        return of(every, every, whole), float(low), float(high)


def _corrected(found: dict[tuple[str, str], Difference]) -> dict[tuple[str, str], Found]:
    corrected = holm([difference.p for difference in found.values()])
    return {key: Found(difference, p) for (key, difference), p in zip(found.items(), corrected, strict=True)}


@dataclass(frozen=True)
class Maps:
    """Average precision of the maps of the last layer, in one kind of pictures."""

    archive: Archive
    kind: str

    @property
    def arms(self) -> list[str]:
        return [arm for arm in self.archive.arms if all(self._of(arm))]

    def _of(self, arm: str) -> list[object]:
        return [self.archive.objects.get(Run(arm, seed)) for seed in self.archive.seeds(arm)]

    def times(self, arm: str) -> list[float]:
        return [float(t) for t in self.archive.objects[Run(arm, self.archive.seeds(arm)[0])]["times"]]

    def scores(self, arm: str, time: float, seeds: Sequence[int]) -> np.ndarray:
        """(seeds, pictures); softmax attention has one map for all times."""
        times = self.times(arm)
        index = times.index(time) if len(times) > 1 else 0
        return np.stack([self.archive.objects[Run(arm, seed)][self.kind][index] for seed in seeds]).astype(float)

    @cached_property
    def chance(self) -> np.ndarray:
        """Of a uniform map, (pictures,)."""
        return next(iter(self.archive.objects.values()))[f"{self.kind}/chance"].astype(float)

    def precision(self, arm: str, time: float) -> float:
        return float(self.scores(arm, time, self.archive.seeds(arm)).mean())

    def difference(self, arm: str, time: float, other: tuple[str, float] | None = None) -> Difference:
        """To another arm at a time, or to chance."""
        if other is None:
            seeds = self.archive.seeds(arm)
            return paired_difference(self.scores(arm, time, seeds), np.tile(self.chance, (len(seeds), 1)))
        seeds = sorted(set(self.archive.seeds(arm)) & set(self.archive.seeds(other[0])))
        return paired_difference(self.scores(arm, time, seeds), self.scores(*other, seeds))
