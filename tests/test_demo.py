"""The demo: refuses what cannot work before training, keeps what is finished, and writes what the report reads."""

import csv
import json
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from demo_cases import TINY
from safetensors.torch import load_file
from torch.utils.data import TensorDataset
from typer.testing import CliRunner
from workers import in_place_of_spawn

import solvers
from vars_ode.cli import app
from vars_ode.data import fashion_mnist
from vars_ode.evaluation import read_evaluation
from vars_ode.models import available_attentions, vars_layers
from vars_ode.report.study import write_report
from vars_ode.saving import load_pretrained
from vars_ode.study import run as study
from vars_ode.study.archive import collect, read_archive
from vars_ode.study.findings import Findings
from vars_ode.study.measure import EVALUATION, measure_solvers
from vars_ode.study.plan import Arm, Plan, read_plan
from vars_ode.study.records import read_results
from vars_ode.study.run import COLUMNS, Job, run_study
from vars_ode.training import Recipe


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished study of two attentions."""
    folder = tmp_path_factory.mktemp("study") / "out"
    with in_place_of_spawn():
        assert run_study(folder, TINY, ("softmax", "vars-sd-dictionary"), seeds=1, workers=2) == []
    assert write_report(folder) == folder / "report.html"
    return folder


def test_results_are_complete(finished: Path) -> None:
    with (finished / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    conditions = {(r["condition"], r["severity"]) for r in rows}
    assert conditions == {("clean", "0"), ("small_contrast", "1"), ("fgsm", "0"), ("pgd", "0")}
    swept = {r["solver"] for r in rows if r["attention"] == "vars-sd-dictionary"}
    assert swept == {"euler@5", "euler@1", "single-step", "nesterov"}
    assert {r["evaluations"] for r in rows if r["solver"] == "euler@5"} == {"5.0"}
    content = json.loads((finished / "results.json").read_text())
    assert content["settings"] == TINY.as_dict()
    assert {run["attention"] for run in content["runs"]} == {"softmax", "vars-sd-dictionary"}
    assert {"torch", "timm", "python", "vars-ode"} <= content["versions"].keys()


def test_each_run_is_an_evaluation_that_reports_compare(finished: Path, tmp_path: Path) -> None:
    runs = {name: finished / "runs" / f"{name}-seed0" / EVALUATION for name in ("softmax", "vars-sd-dictionary")}
    with (finished / "results.csv").open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["attention"] == "softmax"]
    found = read_evaluation(runs["softmax"])
    stored = {(key.condition, key.severity): outcome.accuracy for key, outcome in found.outcomes.items()}
    assert {(r["condition"], int(r["severity"])): float(r["accuracy"]) for r in rows} == stored
    arguments = ["report", *(f"{name}={folder}" for name, folder in runs.items()), "--out", str(tmp_path / "report")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "vars-sd-dictionary against softmax, clean:" in result.output
    assert "<!--" in (finished / "runs" / "softmax-seed0" / "README.md").read_text()  # the card has the table


def test_a_plan_comes_back_from_its_stored_settings(finished: Path) -> None:
    assert Plan.from_dict(json.loads((finished / "settings.json").read_text())["settings"]) == TINY


def test_stored_weights_give_the_stored_accuracy(finished: Path) -> None:
    model = TINY.build("vars-sd-dictionary", seed=5)
    model.load_state_dict(load_file(finished / "runs" / "vars-sd-dictionary-seed0" / "model.safetensors"))
    model.eval()
    images, labels = TINY.images("test").tensors
    with torch.no_grad():
        measured = (model(images).argmax(1) == labels).double().mean().item()
    with (finished / "results.csv").open(newline="") as file:
        keys = ("vars-sd-dictionary", "euler@5", "clean")
        stored = [r for r in csv.DictReader(file) if (r["attention"], r["solver"], r["condition"]) == keys]
    assert [float(r["accuracy"]) for r in stored] == [measured]


def test_energy_and_residual_fall_along_the_trace(finished: Path) -> None:
    trace = np.load(finished / "runs" / "vars-sd-dictionary-seed0" / "trace.npz")
    assert trace["maps_clean"].shape == (3, 4, 7, 7)
    assert (np.diff(trace["energy"], axis=1) <= 1e-6).all()
    assert (trace["residual"][:, -1] < trace["residual"][:, 0]).all()


def test_a_second_start_trains_nothing(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.glob("runs/*/*")}
    monkeypatch.setattr(study, "ProcessPoolExecutor", None)  # starting a worker would fail
    run_study(finished, TINY, ("softmax",), seeds=1)
    assert {path: path.stat().st_mtime_ns for path in finished.glob("runs/*/*")} == before
    runs = json.loads((finished / "results.json").read_text())["runs"]
    assert len(runs) == 2  # the run of the other attention is still reported


def test_other_settings_are_refused(finished: Path) -> None:
    with pytest.raises(ValueError, match=r"sparsity 0\.3 there, 0\.1 now"):
        run_study(finished, replace(TINY, sparsity=0.1), ("softmax",), seeds=1)


def test_a_run_that_fails_leaves_the_others(tmp_path: Path) -> None:
    unstable = replace(TINY, recipe=Recipe(epochs=1, batch_size=20, lr=1e30, warmup_epochs=0, clip_grad=1e30))
    with in_place_of_spawn():
        failures = run_study(tmp_path / "out", unstable, ("softmax",), seeds=1, workers=1)
    assert len(failures) == 1
    assert failures[0].startswith("softmax-seed0: DivergedError: the loss became")
    assert not (tmp_path / "out" / "runs" / "softmax-seed0" / "run.json").exists()
    assert write_report(tmp_path / "out").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attention", "linear"], "unknown attention 'linear'; choose one of softmax, performer"),
        (["--solver", "rk5"], "unknown solver 'rk5' (did you mean 'rk4'?)"),
        (["--solver", "nesterov@5"], "nesterov returns the equilibrium, the limit of long times"),
        (["--solver", "euler@0"], "cannot read the time '0' of euler"),
        (["--solver", "euler@5; rk4@5"], 'models are trained with one solve, such as "euler@5"'),
        (["--seeds", "0"], "seeds must be a whole number"),
        (["--epochs", "0"], "epochs must be a whole number"),
        (["--workers", "0"], "workers must be a whole number"),
        (["--sparsity", "-1"], "sparsity must be a finite number of at least 0"),
    ],
)
def test_bad_options_end_in_one_sentence(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["demo", "--quick", "--out", str(tmp_path / "out"), *arguments])
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_folders_in_use_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("text")
    with pytest.raises(ValueError, match="not empty"):
        run_study(tmp_path, TINY, ("softmax",), seeds=1)
    with pytest.raises(ValueError, match="is a file"):
        run_study(tmp_path / "thesis.tex", TINY, ("softmax",), seeds=1)
    with pytest.raises(ValueError, match="cannot write"):
        run_study(tmp_path / "thesis.tex" / "out", TINY, ("softmax",), seeds=1)
    (tmp_path / "settings.json").write_text("[]")
    with pytest.raises(ValueError, match="cannot be read"):
        run_study(tmp_path, TINY, ("softmax",), seeds=1)


def test_interrupt_keeps_finished_runs(tmp_path: Path) -> None:
    arguments = ["--quick", "--out", str(tmp_path / "out"), "--workers", "1", "--epochs", "200"]
    command = [sys.executable, "-m", "vars_ode", "demo", *arguments]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs inherit that it is ignored
    )
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "out" / "settings.json").exists():
            assert time.monotonic() < deadline, "the study did not begin"
            time.sleep(0.2)
        done = tmp_path / "out" / "runs" / "softmax-seed0"
        done.mkdir(parents=True)
        (done / "run.json").write_text("{}")
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()  # an orphan would train for hours
    assert process.returncode == 130
    assert "1 finished runs are kept" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("command", [["--help"], ["demo", "--help"]])
def test_help_works(command: list[str]) -> None:
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0
    assert "demo" in result.output


@pytest.mark.parametrize("attention", available_attentions())
def test_models_train_and_differ_in_attention_only(attention: str) -> None:
    model, softmax = TINY.build(attention, seed=0), TINY.build("softmax", seed=0)
    model(torch.rand(2, 1, 28, 28)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    names = [{n for n, _ in one.named_parameters() if ".attn." not in n} for one in (model, softmax)]
    assert names[0] == names[1]


@pytest.mark.filterwarnings("ignore::solvers.SolverWarning")
def test_a_solver_that_diverges_affects_its_own_row_only(finished: Path, tmp_path: Path) -> None:
    model = TINY.build("vars-d-factor", seed=0).eval()
    with torch.no_grad():
        for layer in vars_layers(model).values():
            layer.learned.factor.mul_(1e8)  # grows by 1e16 a step: one step is finite, twenty are not
    images = TensorDataset(*(tensor[:4] for tensor in fashion_mnist("test").tensors))
    settings = replace(TINY, sweep="single-step; euler@20; nesterov")
    with pytest.warns(solvers.SolverWarning, match="euler@20: "):
        rows = list(measure_solvers(model, images, settings, TINY.solver, lambda what: None))
    assert {row["solver"] for row in rows if row["accuracy"] is None} == {"euler@20", "nesterov"}
    assert {row["solver"] for row in rows if row["accuracy"] is not None} == {"single-step"}
    assert len(rows) == 6

    folder = tmp_path / "out"  # a study in which that happened, gathered and reported
    shutil.copytree(finished, folder)
    record = folder / "runs" / "vars-sd-dictionary-seed0" / "run.json"
    run = json.loads(record.read_text())
    run["rows"] += [row for row in rows if row["solver"] == "euler@20"]
    record.write_text(json.dumps(run, allow_nan=False))
    run_study(folder, TINY, ("softmax",), seeds=1)
    write_report(folder)
    json.loads((folder / "results.json").read_text(), parse_constant=pytest.fail)  # NaN is not JSON
    text = (folder / "report.html").read_text()
    assert "vars-sd-dictionary, seed 0: euler@20 diverged" in text
    assert "no usable accuracy" not in text


def test_a_job_names_its_folder() -> None:
    assert Job("vars-sd", 1).name == "vars-sd-seed1"


def test_a_trained_model_is_measured_without_training_it_again(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(finished, folder)
    run = folder / "runs" / "vars-sd-dictionary-seed0"
    before = json.loads((run / "run.json").read_text())
    weights = (run / "model.safetensors").stat().st_mtime_ns
    (run / "run.json").unlink()  # the measurement was interrupted
    # without the tests' server: one study runs in workers that are started as they are everywhere else
    assert run_study(folder, TINY, ("softmax", "vars-sd-dictionary"), seeds=1, workers=1) == []
    after = json.loads((run / "run.json").read_text())
    assert (run / "model.safetensors").stat().st_mtime_ns == weights
    kept = [[{**row, "milliseconds": None} for row in record["rows"]] for record in (before, after)]
    assert kept[0] == kept[1]
    assert after["history"] == before["history"]


PLAN = """
epochs: 1
batch_size: 20
train_images: 40
test_images: 20
corruptions: [small_contrast]
severities: [1]
attacks: []
sweep: "euler@1; euler@5/2; nesterov"
sweep_conditions: [[clean, 0], [small_contrast, 1]]
model_options: {embed_dim: 16, depth: 1, num_heads: 2}
num_features: 4
arms:
  softmax: {attention: softmax}
  factor, 1-10:
    {attention: vars-sd-factor, options: {ridge: 0.05, sparsity: 0.1}, recipe: {horizon: uniform 1-10, epochs: 2}}
  monotone: {attention: vars-sd-monotone, options: {ridge: 0.05}}
"""


def test_a_study_trains_the_arms_of_its_plan_and_prints_the_dial(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(PLAN)
    with in_place_of_spawn():
        result = CliRunner().invoke(app, ["study", str(tmp_path / "plan.yaml"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("|")]
    assert lines[0] == "| model | euler@5 | euler@1 | euler@5/2 | nesterov |"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| softmax", "| factor, 1-10", "| monotone"]
    assert lines[-1].endswith("| - / - |")  # momentum is refused: a rotation is no gradient
    model = load_pretrained(tmp_path / "out" / "runs" / "factor, 1-10-seed0")
    (layer,) = vars_layers(model).values()
    assert (layer.ridge, layer.sparsity, layer.t1, layer.solver) == (0.05, 0.1, 5.0, solvers.Euler())
    run = json.loads((tmp_path / "out" / "runs" / "factor, 1-10-seed0" / "run.json").read_text())
    assert len(run["history"]) == 2
    assert {row["stable"] for row in run["rows"] if row["solver"] == "euler@5/2"} == {False}
    with (tmp_path / "out" / "results.csv").open(newline="") as file:
        assert {row["stable"] for row in csv.DictReader(file) if row["solver"] == "euler@1"} == {"True"}
    points = read_results(tmp_path / "out").sweep("factor, 1-10")
    assert {point.solver for point in points if not point.stable} == {"euler@5/2"}


SELECTION = """
epochs: 2
batch_size: 20
data: digits
model_options: {img_size: 16, embed_dim: 16, depth: 1, num_heads: 2}
num_features: 4
train_images: 100
validation_images: 50
test_images: 20
learning_rates: [0.01, 0.001]
severities: [1]
corruptions: [small_contrast]
shifts: [small_translation]
sweep: ""
attacks: [fgsm, masking]
attack_images: 10
attack_steps: 2
queries: 5
seeds: 2
arms:
  softmax: {attention: softmax}
  wide: {attention: vars-d, model_options: {mlp_ratio: 4}}
  short: {attention: vars-d, solver: "euler@2", twin: wide}
"""


@pytest.fixture(scope="module")
def selected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study that chose learning rates."""
    folder = tmp_path_factory.mktemp("selection")
    (folder / "plan.yaml").write_text(SELECTION)
    with in_place_of_spawn():
        result = CliRunner().invoke(app, ["study", str(folder / "plan.yaml"), "--out", str(folder / "out")])
    assert result.exit_code == 0, result.output
    return folder / "out"


def test_a_study_chooses_learning_rates_on_validation_images(selected: Path) -> None:
    out = selected
    trained = sorted(path.name for path in (out / "selection").iterdir())
    assert trained == sorted(f"{arm}-seed0-lr{lr}" for arm in ("softmax", "wide") for lr in ("0.01", "0.001"))
    study = json.loads((out / "results.json").read_text())
    rates = study["learning_rates"]
    for arm in ("softmax", "wide"):
        records = {
            lr: json.loads((out / "selection" / f"{arm}-seed0-lr{lr}" / "training.json").read_text())
            for lr in ("0.01", "0.001")
        }
        found = {lr: record["history"][-1]["validation_accuracy"] for lr, record in records.items()}
        assert rates[arm]["validation"] == found
        assert found[f"{rates[arm]['lr']:g}"] == max(found.values())
    assert rates["short"] == rates["wide"]  # its twin's
    runs = {(run["attention"], run["seed"]): run for run in study["runs"]}
    assert len(runs) == 6
    assert all(run["lr"] == rates[arm]["lr"] for (arm, _), run in runs.items())
    chosen = out / "selection" / f"wide-seed0-lr{rates['wide']['lr']:g}"
    assert (chosen / "model.safetensors").read_bytes() == (
        out / "runs" / "wide-seed0" / "model.safetensors"
    ).read_bytes()
    assert runs["short", 0]["solver"] == "euler@2"
    assert runs["wide", 0]["parameters"] > runs["softmax", 0]["parameters"]
    with (out / "results.csv").open(newline="") as file:
        conditions = {row["condition"] for row in csv.DictReader(file) if row["attention"] == "wide"}
    assert conditions == {
        "clean",
        "small_contrast",
        "small_translation",
        "fgsm",
        "white-box",
        "through rk4@5",
        "square",
    }
    attacked = read_evaluation(out / "runs" / "wide-seed0" / "attacks").outcomes
    assert {len(outcome) for outcome in attacked.values()} == {10}


def test_a_learning_rate_that_diverges_is_not_chosen(tmp_path: Path) -> None:
    plan = replace(TINY, validation_images=20, learning_rates=(1e-3, 1e30), sweep="", corruptions=())
    with in_place_of_spawn():
        assert run_study(tmp_path / "out", plan, ("vars-d",), seeds=1, workers=1) == []
    record = json.loads((tmp_path / "out" / "selection" / "vars-d-seed0-lr1e+30" / "training.json").read_text())
    assert record["diverged"].startswith("update 1 of epoch 0 failed after others had passed")
    chosen = json.loads((tmp_path / "out" / "results.json").read_text())["learning_rates"]["vars-d"]
    assert chosen["lr"] == 1e-3
    assert chosen["validation"]["1e+30"] is None
    with in_place_of_spawn():
        (failure,) = run_study(tmp_path / "none", replace(plan, learning_rates=(1e30,)), ("vars-d",), 1, workers=1)
    assert failure == "vars-d: it could be trained with no learning rate of the plan"


def test_an_archive_holds_every_answer(selected: Path, tmp_path: Path) -> None:
    collect(selected, tmp_path / "study")
    archive = read_archive(tmp_path / "study")
    assert archive.arms == ["softmax", "wide", "short"]
    assert archive.seeds("wide") == [0, 1]
    evaluation = read_evaluation(selected / "runs" / "wide-seed1" / "evaluation")
    outcomes = {(key.condition, key.severity): outcome for key, outcome in evaluation.outcomes.items()}
    correct = archive.correct("wide", list(outcomes), [1])[0]
    assert correct.tolist() == [outcome.correct.tolist() for outcome in outcomes.values()]
    assert not archive.measured("softmax", ("through rk4@5", 0))  # it has no solver
    with pytest.raises(ValueError, match="was not measured under all of"):
        archive.correct("softmax", [("through rk4@5", 0)])
    with pytest.raises(ValueError, match="no images were measured under all of"):
        archive.correct("wide", [("clean", 0), ("fgsm", 0)])  # of other images
    (tmp_path / "study.npz").write_bytes(b"cut")
    with pytest.raises(ValueError, match="no archived study"):
        read_archive(tmp_path / "study")


def test_the_models_of_the_studies_in_the_docs_have_as_many_parameters() -> None:
    for path in (Path(__file__).parents[1] / "docs" / "study").glob("*.yaml"):
        plan, names, _ = read_plan(path)
        if not plan.learning_rates:
            continue  # the dial's arms differ in their training
        counts = {name: sum(p.numel() for p in plan.build(name, 0).parameters()) for name in names}
        assert max(counts.values()) < 1.02 * min(counts.values()), (path.name, counts)
        assert {plan.arm(name).attention for name in names} >= {
            "softmax",
            "performer",
            "vars-s",
            "vars-d",
            "vars-sd-factor",
        }


def test_findings_of_a_study(selected: Path, tmp_path: Path) -> None:
    collect(selected, tmp_path / "study")
    found = Findings(read_archive(tmp_path / "study"))
    assert (found.main, found.ablations) == (["softmax", "wide"], {"short": "wide"})
    with (selected / "results.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["attention"] == "wide" and row["solver"] == "euler@5"]

    def mean(condition: str) -> float:
        return statistics.mean(float(row["accuracy"]) for row in rows if row["condition"] == condition)

    for measure, condition in {"clean": "clean", "corrupted": "small_contrast", "pgd": "white-box"}.items():
        assert found.value("wide", measure) == pytest.approx(mean(condition))
    clean, corrupted = (
        found.archive.correct("wide", [(name, level)])[:, 0] for name, level in (("clean", 0), ("small_contrast", 1))
    )
    assert found.value("wide", "kept") == pytest.approx((clean & corrupted).sum() / clean.sum())
    assert {name for name, _ in found.attacks("wide")} == {"fgsm", "white-box", "through rk4@5", "square"}
    together = [found.archive.correct("wide", [attack])[:, 0] for attack in found.attacks("wide")]
    assert found.value("wide", "attacks") == np.all(together, axis=0).mean()
    assert set(found.against_baseline) == {("wide", measure) for measure in found.measures}
    assert "occlusion" not in found.measures  # it was not measured
    difference = found.against_baseline["wide", "kept"].difference
    assert difference.mean == pytest.approx(found.value("wide", "kept") - found.value("softmax", "kept"))
    assert difference.low <= difference.mean <= difference.high
    assert all(
        found.against_baseline[key].p >= found.against_baseline[key].difference.p for key in found.against_baseline
    )
    own, low, high = found.corruption_error("wide", relative=False)
    assert own == pytest.approx(
        100 * (1 - found.value("wide", "corrupted")) / (1 - found.value("softmax", "corrupted"))
    )
    assert low <= own <= high


def test_arms_can_be_added_to_a_study_and_not_changed() -> None:
    def plan(**arms: Arm) -> Plan:
        return replace(TINY, arms=arms)

    stored = plan(a=Arm("softmax")).as_dict()
    assert plan(a=Arm("softmax"), b=Arm("vars-d")).differences(stored) == []
    (difference,) = plan(a=Arm("vars-d")).differences(stored)
    assert difference.startswith("arm 'a'")


def test_a_study_measures_the_claims(tmp_path: Path) -> None:
    plan = replace(TINY, objects=True, attacks=(), sweep="")
    with in_place_of_spawn():
        assert run_study(tmp_path / "out", plan, ("softmax", "performer", "vars-d"), seeds=1, workers=1) == []
    runs = {name: tmp_path / "out" / "runs" / f"{name}-seed0" for name in ("softmax", "performer", "vars-d")}
    records = {name: json.loads((folder / "run.json").read_text()) for name, folder in runs.items()}
    assert (records["softmax"]["active"], records["softmax"]["gap"]) == (None, [])
    assert 0 < records["vars-d"]["active"] <= 1
    assert [(row["time"], row["sparsity"]) for row in records["vars-d"]["gap"]][5] == (1, 0.3)
    assert not (runs["performer"] / "objects.npz").exists()  # whose matrix is never formed
    for name, times in {"softmax": 1, "vars-d": 5}.items():
        with np.load(runs[name] / "objects.npz") as found:
            assert found["article"].shape == (times, *found["article/chance"].shape)
            assert ((found["two"] > 0) & (found["two"] <= 1)).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rates: [0.1]\narms: {a: {attention: softmax}}", "give validation_images too"),
        ("data: fashion\narms: {a: {attention: softmax}}", "unknown data 'fashion' (did you mean 'fashion-mnist'?)"),
        ("train_images: 4999\nvalidation_images: 2\narms: {a: {attention: softmax}}", "has 5000 training images"),
        ("arms: {a: {attention: softmax, twin: b}, b: {attention: softmax, twin: a}}", "name its twin"),
        ("test_images: 5\nattack_images: 6\narms: {a: {attention: softmax}}", "among the 5 test images"),
        ("epochs: [", "cannot read the plan"),
        ("- epochs", "holds no plan"),
        ("epoch: 3", "unknown setting of the plan 'epoch' (did you mean 'epochs'?)"),
        ("arms: {a: {options: {}}}", "arm 'a' must have an attention"),
        ("arms: {a/b: {attention: vars-d}}", "an arm's name is made of letters"),
        ("arms: {a: {attention: vars-d, recipe: {horizons: fixed}}}", "did you mean 'horizon'?"),
        ("arms: {a: {attention: vars-d, options: {ridges: 1}}}\ntrain_images: 20", "ridges"),
        ("sweep: euler@x", "cannot read the time 'x' of euler"),
        ("attacks: [fgms]", "unknown attack 'fgms' (did you mean 'fgsm'?)"),
        ("batch_size: many", "batch_size must be a whole number"),
    ],
)
def test_bad_plans_end_in_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(text)
    result = CliRunner().invoke(app, ["study", str(tmp_path / "plan.yaml"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "out").exists()
