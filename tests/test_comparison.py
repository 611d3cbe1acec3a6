"""Differences of models: right where the truth is known, paired, corrected; and told as they are."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import vars_ode
from vars_ode.comparison import MEAN, Comparison, compare
from vars_ode.report.comparison import write_comparison
from vars_ode.robustness import Outcome
from vars_ode.statistics import holm, paired_difference


def scores(random: np.random.Generator, seeds: int, images: int, chance: float) -> np.ndarray:
    return (random.random((seeds, images)) < chance).astype(float)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    inside = 0
    for trial in range(100):
        ours, theirs = scores(random, 1, 200, 0.7), scores(random, 1, 200, 0.6)
        found = paired_difference(ours, theirs, resamples=300, seed=trial)
        inside += found.low <= 0.1 <= found.high
    assert 0.88 <= inside / 100 <= 0.99


def test_pairing_of_images_narrows_the_interval_and_seeds_widen_it() -> None:
    random = np.random.default_rng(0)
    hard = random.random(400)
    ours, theirs = (hard < 0.75)[None], (hard < 0.7)[None]  # agree on nearly every image
    paired = paired_difference(ours, theirs)
    shuffled = paired_difference(ours, random.permutation(theirs, axis=1))
    assert paired.high - paired.low < 0.5 * (shuffled.high - shuffled.low)
    assert paired.mean == pytest.approx(shuffled.mean)
    apart = np.stack([hard < 0.9, hard < 0.6, hard < 0.75])  # seeds that differ much
    assert paired_difference(apart, np.repeat(theirs, 3, axis=0)).p > paired.p


def test_no_difference_has_no_small_p_and_a_large_one_has() -> None:
    random = np.random.default_rng(1)
    same = scores(random, 3, 300, 0.5)
    assert paired_difference(same, same).p == 1.0
    found = paired_difference(scores(random, 3, 300, 0.9), scores(random, 3, 300, 0.5), resamples=500)
    assert found.p == 1 / 500
    assert (found.seeds, found.images) == (3, 300)
    with pytest.raises(ValueError, match="on the same images"):
        paired_difference(np.ones((1, 3)), np.ones((1, 4)))


def test_holms_correction() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


class Threshold(nn.Module):
    """Tells bright images from dark ones, at its own threshold."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(threshold))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        score = 10 * (images.mean((1, 2, 3)) - self.threshold)
        return torch.stack([-score, score], 1)


@pytest.fixture(scope="module")
def data() -> TensorDataset:
    torch.manual_seed(0)
    labels = torch.arange(60) % 2
    images = (0.3 + 0.4 * labels.view(-1, 1, 1, 1) + 0.2 * (torch.rand(60, 1, 8, 8) - 0.5)).clamp(0, 1)
    return TensorDataset(images, labels)


CONDITIONS = ("clean", "small_contrast", "small_brightness", "fgsm")


@pytest.fixture(scope="module")
def found(data: TensorDataset) -> Comparison:
    models = {"good": [Threshold(0.5), Threshold(0.52)], "bad": [Threshold(0.29), Threshold(0.8)]}
    return vars_ode.compare(models, data, CONDITIONS, (1, 3), baseline="bad")


def test_a_comparison_of_models(found: Comparison) -> None:
    assert list(found.measures) == ["clean", MEAN, "small_contrast", "small_brightness", "fgsm"]
    rows = found.to_rows()
    assert len(rows) == 2 * 2 * 6
    clean = [row["accuracy"] for row in rows if row["name"] == "good" and row["condition"] == "clean"]
    assert clean == [1.0, 1.0]
    assert found.accuracy("good", "clean").mean == 1.0
    difference = next(a for a in found.differences if a.measure == "clean")
    expected = 1.0 - np.mean([row["accuracy"] for row in rows if row["name"] == "bad" and row["condition"] == "clean"])
    assert difference.difference.mean == pytest.approx(expected)
    assert all(a.p_holm >= a.difference.p for a in found.differences)
    assert any(sentence.startswith("good against bad, clean: +") for sentence in found.findings())
    assert found.plot().get_axes()[0].get_xlabel() == "accuracy (%)"


def test_conditions_that_are_not_in_every_run_are_named(found: Comparison) -> None:
    runs = {name: [list(run.values()) for run in seeds] for name, seeds in found.runs.items()}
    runs["good"][0] = [o for o in runs["good"][0] if o.condition != "fgsm"]
    partial = Comparison.of(runs)
    assert "fgsm" not in partial.measures
    assert "Not in every run, and left out: fgsm." in partial.findings()


def test_conditions_on_different_images_count_equally() -> None:
    def answers(condition: str, right: int, images: int) -> Outcome:
        labels = torch.zeros(images, dtype=torch.long)
        return Outcome(condition, 1, torch.arange(images), labels, (torch.arange(images) >= right).long())

    runs = {
        "a": [[answers("fog", 1, 2), answers("snow", 9, 10)]],
        "b": [[answers("fog", 0, 2), answers("snow", 9, 10)]],
    }
    found = Comparison.of(runs, "b")
    (difference,) = (a.difference for a in found.differences if a.measure == MEAN)
    assert difference.mean == pytest.approx(found.accuracy("a", MEAN).mean - found.accuracy("b", MEAN).mean)


def test_other_images_are_refused(data: TensorDataset) -> None:
    labels = torch.zeros(4, dtype=torch.long)
    outcome = Outcome("clean", 0, torch.arange(4), labels, labels)
    other = Outcome("clean", 0, torch.arange(1, 5), labels, labels)
    with pytest.raises(ValueError, match="b and a were measured on other images under 'clean'"):
        Comparison.of({"a": [[outcome]], "b": [[other]]})
    with pytest.raises(ValueError, match="nothing to compare"):
        Comparison.of({})
    with pytest.raises(ValueError, match="the baseline 'c' is none of a"):
        compare({"a": Threshold(0.5)}, data, baseline="c")
    one = compare({"a": Threshold(0.5), "b": Threshold(0.2)}, data, ("clean",))
    assert any("one seed" in sentence for sentence in one.findings())


def test_the_page_of_a_comparison(found: Comparison, tmp_path: Path) -> None:
    page = write_comparison(found, tmp_path / "page", {"Attack": "FGSM <eps 1/255>"}).read_text()
    assert "good against bad, clean: +" in page
    assert "FGSM &lt;eps 1/255&gt;" in page
    assert len(list(csv.DictReader((tmp_path / "page" / "differences.csv").open()))) == len(found.measures)
    assert len(list(csv.DictReader((tmp_path / "page" / "accuracies.csv").open()))) == len(found.to_rows())
    alone = Comparison.of({"good": [list(run.values()) for run in found.runs["good"]]})
    assert "nothing to compare one model with" in write_comparison(alone, tmp_path / "alone").read_text()
