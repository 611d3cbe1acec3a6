"""The demo's report: its numbers, its sentences, what it says when pieces are missing. All results are made up."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vars_ode.report.plots_solvers import accuracy_by_cost
from vars_ode.report.plots_traces import _maps
from vars_ode.report.statements import DASH, percent, short_answer, solver_statements, variant_statements
from vars_ode.report.study import write_report
from vars_ode.statistics import Spread, verdict
from vars_ode.study.records import Results, read_results

CORRUPTIONS = ("gaussian_noise", "motion_blur", "contrast")
SOLVERS = {"euler@1": 1, "euler@2": 2, "euler@5": 5, "euler@20": 20, "rk4@5": 20, "nesterov": 20}
COLUMNS = ("attention", "seed", "solver", "condition", "severity", "accuracy", "evaluations", "milliseconds")
CHEAPEST = "the cheapest within 2 points of the best is euler@5, 5 evaluations."
VOID = {"meta", "img", "br", "hr", "link"}


# --- made-up results -------------------------------------------------------------------------------------------------


def write_results(
    folder: Path,
    levels: dict[str, float],
    seeds: int = 3,
    jitter: float = 0.004,
    corruptions: tuple[str, ...] = CORRUPTIONS,
    traces: bool = True,
    layers: int = 4,
) -> Path:
    """A results folder; attention `a` has a clean accuracy near `levels[a]`, and none called no-energy an energy."""
    random = np.random.default_rng(0)
    rows: list[tuple[Any, ...]] = []
    runs = []
    for attention, level in levels.items():
        for seed in range(seeds):
            base = level + jitter * (seed - (seeds - 1) / 2)
            rows += _rows(attention, seed, base, corruptions)
            runs.append(_run(attention, seed, random))
            if traces:
                _write_trace(folder / "runs" / f"{attention}-seed{seed}", attention, random, layers)
    write_csv(folder, rows)
    content = {
        "settings": {
            "epochs": 12,
            "seeds": seeds,
            "embed_dim": 64,
            "sparsity": 0.3,
            "eps": 8 / 255,
            "attack_steps": 5,
            "attack_step": 0.25,
            "note": "a<b & c",
        },
        "versions": {"vars-ode": "0.1.0", "torch": "2.6.0"},
        "started": "2025-01-01T12:00:00",
        "wall_seconds": 1234.5,
        "command": "vars-ode demo --epochs 12",
        "runs": runs,
    }
    (folder / "results.json").write_text(json.dumps(content))
    return folder


def write_csv(folder: Path, rows: list[tuple[Any, ...]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "results.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])


def _rows(attention: str, seed: int, base: float, corruptions: tuple[str, ...]) -> list[tuple[Any, ...]]:
    solver, cost = ("exact", 0) if attention == "softmax" else ("euler@5", 5)
    rows: list[tuple[Any, ...]] = [(attention, seed, solver, "clean", 0, base, cost, 0.2)]
    rows += [
        (attention, seed, solver, attack, 0, base - drop, cost, "") for attack, drop in (("fgsm", 0.3), ("pgd", 0.4))
    ]
    for rank, name in enumerate(corruptions):
        for severity in (1, 2, 3):
            rows.append((attention, seed, solver, name, severity, base - 0.05 * severity - 0.04 * rank, cost, ""))
    if attention != "softmax":
        for name, evaluations in SOLVERS.items():
            change = -0.2 if name == "euler@1" else 0.01 * np.log2(evaluations / 5)
            if name != "euler@5":
                rows.append((attention, seed, name, "clean", 0, base + change, evaluations, 0.04 * evaluations))
                rows.append((attention, seed, name, corruptions[0], 2, base - 0.1 + 1.5 * change, evaluations, ""))
    return rows


def _run(attention: str, seed: int, random: np.random.Generator) -> dict[str, Any]:
    losses = 2.2 * np.exp(-np.arange(12) / 4) + 0.3 + 0.03 * random.standard_normal(12)
    history = [{"epoch": i + 1, "loss": float(x), "train_accuracy": float(1 - x / 3)} for i, x in enumerate(losses)]
    softmax = attention == "softmax"
    return {
        "attention": attention,
        "seed": seed,
        "solver": "exact" if softmax else "euler@5",
        "parameters": 206_000 if softmax else 215_000,
        "train_seconds": 60.0 if softmax else 90.0,
        "history": history,
        "final_loss": history[-1]["loss"],
    }


def _write_trace(folder: Path, attention: str, random: np.random.Generator, layers: int) -> None:
    folder.mkdir(parents=True)
    images = np.random.default_rng(7).random((3, 28, 28)) * np.hanning(28) * np.hanning(28)[:, None]
    corrupted = np.clip(images + 0.2 * np.random.default_rng(8).standard_normal(images.shape), 0, 1)
    arrays: dict[str, Any] = {"images": images, "corrupted": corrupted, "corruption_name": np.array("gaussian_noise")}
    steps = 1 if attention == "softmax" else 6
    growth = np.linspace(0.3, 1, steps)[None, :, None, None]
    hill = np.hanning(9)[1:-1] * np.hanning(9)[1:-1, None]
    arrays["maps_clean"] = growth * hill + 0.02 * random.random((3, steps, 7, 7))
    arrays["maps_corrupted"] = growth * hill + 0.1 * random.random((3, steps, 7, 7))
    arrays["map_times"] = np.arange(steps, dtype=float)
    if attention != "softmax":
        arrays["times"] = np.arange(6.0)
        decay = np.exp(-np.arange(6) / 2) * (1 + np.arange(layers))[:, None]
        arrays["residual"] = 0.1 * decay
        arrays["energy"] = np.full_like(decay, np.nan) if "no-energy" in attention else decay - 8.0
    np.savez(folder / "trace.npz", **arrays)


# --- reading the page ------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects the text, the tables and the references; fails on a tag that is not closed."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.texts: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    def row(self, table: int, *start: str) -> list[str]:
        return next(row for row in self.tables[table] if tuple(row[: len(start)]) == start)


def report(folder: Path) -> Page:
    path = write_report(folder)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    levels = {"vars-d": 0.75, "softmax": 0.76, "vars-sd": 0.80, "vars-no-energy": 0.761}
    folder = write_results(tmp_path_factory.mktemp("full"), levels)
    return folder, report(folder)


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of the text alone: drawing takes seconds."""
    monkeypatch.setattr("vars_ode.report.study.draw_plots", lambda results, folder: [])


# --- the whole report ------------------------------------------------------------------------------------------------


def test_page_is_self_contained_and_prints_no_nan(full: tuple[Path, Page]) -> None:
    _, page = full
    assert page.references
    assert all(ref.startswith(("#", "data:image/png;base64,")) for ref in page.references)
    assert "http" not in page.text
    assert "url(" not in page.text
    assert "@import" not in page.text
    assert "script" not in page.text
    assert not re.search(r"\b(nan|NaN|None|inf)\b", page.text)


def test_all_plots_are_drawn(full: tuple[Path, Page]) -> None:
    folder, page = full
    names = {path.stem for path in (folder / "plots").glob("*.png")}
    maps = {f"attention_maps_{name}" for name in ("vars-d", "vars-sd", "vars-no-energy")}
    single = {
        "accuracy_by_corruption",
        "accuracy_by_severity",
        "accuracy_by_cost",
        "energy_and_residual",
        "training_curves",
    }
    assert names == maps | single
    assert sum(ref.startswith("data:") for ref in page.references) == len(names)


@pytest.mark.usefixtures("no_plots")
def test_headline_numbers_by_hand(tmp_path: Path) -> None:
    accuracies = {("softmax", 0): (0.70, 0.50, 0.40), ("softmax", 1): (0.74, 0.56, 0.44)}
    rows: list[tuple[Any, ...]] = []
    for (name, seed), (clean, mild, strong) in accuracies.items():
        rows += [(name, seed, "exact", "clean", 0, clean, 0, ""), (name, seed, "exact", "contrast", 1, mild, 0, "")]
        rows += [(name, seed, "exact", "contrast", 2, strong, 0, ""), (name, seed, "exact", "fgsm", 0, 0.3, 0, "")]
    write_csv(tmp_path, rows)
    page = report(tmp_path)
    assert page.tables[0][0][:6] == [
        "Attention",
        "Seeds",
        "Parameters",
        "Clean (%)",
        "Mean of corruptions (%)",
        "FGSM (%)",
    ]
    # clean: 72, deviation sqrt(2 * 2^2 / 1) = 2.83; corruptions per seed 45 and 50: deviation 3.54; FGSM: 30 twice
    assert page.tables[0][1][:6] == ["softmax", "2", DASH, "72.0 ± 2.8", "47.5 ± 3.5", "30.0 ± 0.0"]


def test_headline_of_the_full_report(full: tuple[Path, Page]) -> None:
    _, page = full
    assert page.tables[0][1][0] == "softmax"  # the baseline leads, whatever the order on disk
    # seeds 75.6, 76.0, 76.4; corruptions take 5, 10, 15 and 0, 4, 8 points off, so 14 in the mean
    expected = ["softmax", "3", "206,000", "76.0 ± 0.4", "62.0 ± 0.4", "46.0 ± 0.4", "36.0 ± 0.4", "exact", "60"]
    assert page.tables[0][1] == expected
    assert page.row(2, "motion blur", "softmax")[2:] == ["67.0 ± 0.4", "62.0 ± 0.4", "57.0 ± 0.4", "62.0 ± 0.4"]


def test_solver_table_marks_the_training_solver(full: tuple[Path, Page]) -> None:
    _, page = full
    assert page.row(1, "vars-sd", "euler@5 (training)")[2:] == ["80.0 ± 0.4", "70.0 ± 0.4", "5.0", "0.200"]
    assert page.row(1, "vars-sd", "euler@1")[2:] == ["60.0 ± 0.4", "40.0 ± 0.4", "1.0", "0.040"]
    assert "gaussian noise (severity 2)" in page.text


# --- sentences -------------------------------------------------------------------------------------------------------


def results_of(folder: Path, softmax: float, variant: float, **options: Any) -> Results:
    return read_results(write_results(folder, {"softmax": softmax, "vars-sd": variant}, traces=False, **options))


def test_statements_flip_with_the_numbers(tmp_path: Path) -> None:
    ahead = results_of(tmp_path / "a", 0.76, 0.80)
    behind = results_of(tmp_path / "b", 0.80, 0.76)
    within = results_of(tmp_path / "c", 0.76, 0.762)
    single = results_of(tmp_path / "d", 0.76, 0.80, seeds=1)
    assert "ahead of softmax by more than the spread over seeds: vars-sd (+4.0 points)." in short_answer(ahead)
    assert "behind softmax by more than the spread over seeds: vars-sd (-4.0 points)." in short_answer(behind)
    assert "within the spread over seeds: vars-sd" in short_answer(within)
    assert "no spread can be given: vars-sd" in short_answer(single)
    clean = [variant_statements(results, "vars-sd")[1][0] for results in (ahead, behind, within, single)]
    assert clean[0] == (
        "Clean images: vars-sd is 4.0 points ahead of softmax (80.0 ± 0.4 % against 76.0 ± 0.4 %, 3 seeds each), "
        "more than the spread over seeds."
    )
    assert clean[1] == (
        "Clean images: vars-sd is 4.0 points behind softmax (76.0 ± 0.4 % against 80.0 ± 0.4 %, 3 seeds each), "
        "more than the spread over seeds."
    )
    assert "0.2 points ahead of softmax" in clean[2]
    assert "cannot tell the two apart" in clean[2]
    assert "with one seed no spread can be given" in clean[3]
    assert "±" not in clean[3]


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ((0.80, 0.81), (0.70, 0.71), "ahead"),
        ((0.70, 0.71), (0.80, 0.81), "behind"),
        ((0.70, 0.80), (0.75, 0.76), "within"),
        ((0.80, 0.70), (0.698, 0.699), "within"),  # apart, but by less than a standard deviation
        ((0.80,), (0.70, 0.71), "single"),
        ((), (0.70, 0.71), "missing"),
    ],
)
def test_verdict(ours: tuple[float, ...], theirs: tuple[float, ...], expected: str) -> None:
    assert verdict(Spread(ours), Spread(theirs)) == expected


def test_spread_of_one_seed_has_no_deviation() -> None:
    assert percent(Spread((0.5,))) == "50.0"
    assert percent(Spread()) == DASH
    assert percent(Spread.of([0.5, float("nan")])) == "50.0"


def test_solver_statements_pair_the_seeds(tmp_path: Path) -> None:
    clean, corrupted = solver_statements(results_of(tmp_path, 0.76, 0.80), "vars-sd")
    assert "trained with euler@5 (80.0 ± 0.4 %, 5 evaluations)" in clean
    assert "a change of +2.0 points, up in 3 of 3 seeds" in clean
    assert "Worst: euler@1 (60.0 ± 0.4 %, 1 evaluation), a change of -20.0 points, down in 3 of 3 seeds" in clean
    assert "euler@1 (40.0 ± 0.4 %" in corrupted
    # euler@5 has 80, those of 20 evaluations 82, so that five steps are just within 2 points; euler@1 has 60
    assert clean.endswith("Over all 6 solves the accuracy spreads by 22.0 points; " + CHEAPEST)


# --- pieces that are missing -----------------------------------------------------------------------------------------


def test_empty_folder_and_no_folder(tmp_path: Path) -> None:
    text = report(tmp_path).text
    assert "There are no results in this folder yet." in text
    assert "results.csv is missing" in text
    assert "results.json is missing" in text
    with pytest.raises(FileNotFoundError, match="vars-ode demo"):
        write_report(tmp_path / "nowhere")


def test_only_softmax(tmp_path: Path) -> None:
    page = report(write_results(tmp_path, {"softmax": 0.76}))
    assert "There are only softmax runs" in page.text
    assert "needs softmax and at least one other attention" in page.text
    assert (tmp_path / "plots" / "attention_maps_softmax.png").is_file()


def test_only_one_variant_one_seed_and_no_traces(tmp_path: Path) -> None:
    text = report(write_results(tmp_path, {"vars-d": 0.75}, seeds=1, traces=False)).text
    assert "There is no softmax run" in text
    assert "One seed only for vars-d" in text
    assert "vars-d: no trace of the solve was stored." in text
    assert "Residual and energy along the solve: not drawn. No run stored a trace of its solve." in text


@pytest.mark.usefixtures("no_plots")
def test_interrupted_run_is_not_in_the_mean_and_named(tmp_path: Path) -> None:
    write_results(tmp_path, {"softmax": 0.76, "vars-d": 0.75}, traces=False)
    lines = (tmp_path / "results.csv").read_text().splitlines()
    cut = [line for line in lines if not line.startswith(("vars-d,2,euler@5,contrast,3", "vars-d,2,euler@5,pgd"))]
    (tmp_path / "results.csv").write_text("\n".join([*cut, "vars-d,2,euler@5,pg"]))
    page = report(tmp_path)
    # seeds 0 and 1 of vars-d: 74.6 and 75.0 clean, so 60.6 and 61.0 in the mean of corruptions
    assert page.row(0, "vars-d")[3:7] == ["75.0 ± 0.4", "60.8 ± 0.3 (n = 2)", "45.0 ± 0.4", "34.8 ± 0.3 (n = 2)"]
    assert "vars-d, seed 2: mean of corruptions incomplete, so not in that mean" in page.text
    assert "1 line(s) of results.csv hold no usable accuracy" in page.text


@pytest.mark.usefixtures("no_plots")
def test_diverged_solvers_are_named_and_not_in_the_means(tmp_path: Path) -> None:
    write_results(tmp_path, {"softmax": 0.76, "vars-d": 0.75}, seeds=2, traces=False)
    lines = (tmp_path / "results.csv").read_text().splitlines()
    for number, line in enumerate(lines):
        values = line.split(",")
        if values[2] == "nesterov" or values[:3] == ["vars-d", "1", "euler@20"]:
            lines[number] = ",".join([*values[:5], "", "", ""])
    (tmp_path / "results.csv").write_text("\n".join(lines))
    page = report(tmp_path)
    assert page.row(1, "vars-d", "nesterov")[2:] == ["diverged", "diverged", DASH, DASH]
    assert page.row(1, "vars-d", "euler@20")[2] == "76.8 (n = 1)"
    assert "vars-d, seed 0 and 1: nesterov diverged, so no accuracy is given there." in page.text
    assert "vars-d, seed 1: euler@20 diverged" in page.text
    assert "no usable accuracy" not in page.text


def test_measurements_without_json(tmp_path: Path) -> None:
    write_results(tmp_path, {"softmax": 0.76, "vars-d": 0.75}, traces=False)
    (tmp_path / "results.json").write_text("{")
    page = report(tmp_path)
    assert page.row(0, "vars-d")[3] == "75.0 ± 0.4"  # the most measured solver is taken for the trained one
    assert "Training: not drawn. No training history was stored." in page.text


@pytest.mark.usefixtures("no_plots")
def test_damaged_trace_and_diverged_training_are_named(tmp_path: Path) -> None:
    write_results(tmp_path, {"softmax": 0.76, "vars-d": 0.75}, seeds=2)
    (tmp_path / "runs" / "vars-d-seed0" / "trace.npz").write_bytes(b"PK\x03\x04 broken")
    content = json.loads((tmp_path / "results.json").read_text())
    content["runs"][0]["history"][5]["loss"] = float("nan")
    content["runs"].append({"attention": "vars-d"})
    (tmp_path / "results.json").write_text(json.dumps(content))
    text = report(tmp_path).text
    assert "The trace of vars-d, seed 0, could not be read." in text
    assert "a run without attention and seed" in text
    assert "The training loss of softmax, seed 0, did not stay finite." in text
    assert "vars-d: no trace" not in text


@pytest.mark.usefixtures("no_plots")
def test_warnings_of_the_solvers_are_counted(tmp_path: Path) -> None:
    write_results(tmp_path, {"softmax": 0.76, "vars-d": 0.75, "vars-sd": 0.75}, seeds=2, traces=False)
    assert "No warning was recorded." in report(tmp_path).text
    content = json.loads((tmp_path / "results.json").read_text())
    for run in content["runs"]:
        given = {("vars-d", 0): ["slow", "stiff"], ("vars-d", 1): ["slow"], ("vars-sd", 1): ["slow"]}
        run["warnings"] = given.get((run["attention"], run["seed"]), [])
    (tmp_path / "results.json").write_text(json.dumps(content))
    text = report(tmp_path).text
    assert "vars-d in 2 of 2 runs and vars-sd in 1 of 2 runs: slow" in text
    assert "vars-d in 1 of 2 runs: stiff" in text
    assert "No warning was recorded." not in text


@pytest.mark.usefixtures("no_plots")
def test_the_solves_of_the_trainings_are_told(tmp_path: Path) -> None:
    write_results(tmp_path, {"softmax": 0.76, "vars-d": 0.75}, seeds=2, traces=False)
    assert "no run recorded the solves of its training" in report(tmp_path).text
    content = json.loads((tmp_path / "results.json").read_text())
    for run in content["runs"]:
        if run["attention"] == "vars-d":
            rows = [(0, "blocks.0.attn", 0.9, 3), (1, "blocks.0.attn", 0.7 + 0.1 * run["seed"], 0)]
            rows += [(1, "blocks.1.attn", 0.5, 0)]
            run["solves"] = [
                {"epoch": e, "layer": name, "solves": 40, "failures": failed, "steps": 5.0, "evaluations": 5.0}
                | {"residual": 0.125, "active": share}
                for e, name, share, failed in rows
            ]
            run["warnings"] = ["epoch 0: 3 of 40 solves of blocks.0.attn did not reach what was asked for"]
    (tmp_path / "results.json").write_text(json.dumps(content))
    page = report(tmp_path)
    # the last epoch's share, over seeds 0.7 and 0.8; failures of both epochs and seeds
    assert page.row(3, "vars-d", "blocks.0.attn")[2:] == ["5.0", "0.12", "75.0", "6 of 160"]
    assert "vars-d: 50 to 75 % of the codes are active, depending on the layer, and 38 % are zero" in page.text
    assert "vars-d in 2 of 2 runs: epoch 0: 3 of 40 solves of blocks.0.attn" in page.text
    assert "The solvers warned: see below." in page.text


def test_no_accuracy_axis_leaves_0_to_100_percent(tmp_path: Path) -> None:
    results = results_of(tmp_path, 0.76, 0.45)  # one step loses 20 points, and 30 under corruption: below 10 %
    figure = accuracy_by_cost(results).figure
    assert figure is not None
    for axes in figure.axes:
        low, high = axes.get_ylim()
        assert 0 <= low < high <= 100


def test_maps_are_relative_to_their_mean(full: tuple[Path, Page]) -> None:
    """Weights that shrink along the solve are told in words, and do not darken the maps."""
    trace = {"images": np.zeros((1, 28, 28)), "maps_clean": np.ones((1, 2, 7, 7)), "map_times": np.array([1.0, 20.0])}
    trace["maps_clean"][0, 1] = 0.1
    trace["maps_clean"][0, 1, 0, 0] = 0.2
    plot = _maps("vars-d", trace, None)
    assert plot.figure is not None
    pictures = [axes.images[0].get_array() for axes in plot.figure.axes[1:3]]
    assert np.allclose([picture.mean() for picture in pictures], 1.0)
    assert "at t = 20 their sum is 0.1 times that at t = 1" in plot.reading


@pytest.mark.usefixtures("no_plots")
def test_attacks_and_wide_tables_are_readable(full: tuple[Path, Page]) -> None:
    folder, page = full
    assert "PGD takes 5 steps of 0.00784 from a random start" in page.text
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert '<table class="wide">' in html  # nine columns: blocks on a phone
    assert 'data-label="PGD (%)"' in html
    assert '<table class="long">' in html  # settings, whose values wrap


def test_field_without_energy_says_so(full: tuple[Path, Page]) -> None:
    assert "vars-no-energy: there is no energy to show" in full[1].text
    assert "vars-d: the energy never rises in 4 of 4 layers" in full[1].text


def test_odd_names_are_escaped(tmp_path: Path) -> None:
    odd = '_<b>"$x_1 & $'
    folder = write_results(tmp_path, {"softmax": 0.76, odd: 0.75}, seeds=2, corruptions=("<i>_$blur$",), traces=False)
    html = write_report(folder).read_text(encoding="utf-8")
    assert "<b>" not in html
    assert "<i>" not in html
    assert "a&lt;b &amp; c" in html
    page = Page(html)
    assert page.row(0, odd)[1] == "2"
    assert odd in page.text
