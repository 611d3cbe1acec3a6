"""The evaluation of saved models: what each condition measures, what is kept, how it goes on, and in two processes."""

import csv
import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_cases import CASES as DATA
from data_cases import WNIDS, class_tree, put
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from trees import image_folder
from typer.testing import CliRunner
from workers import forkserver

import vars_ode
from vars_ode.cli import app
from vars_ode.data import BENCHMARKS, IMAGENET_C, Preprocessing, fashion_mnist
from vars_ode.evaluation import EvaluationSettings, Key, read_evaluation, run, run_evaluation
from vars_ode.evaluation.card import END, START
from vars_ode.evaluation.masking import masking_summary, random_features, redrawn
from vars_ode.evaluation.steps import CONDITIONS, Subject, plan
from vars_ode.evaluation.storage import errors_of
from vars_ode.models import with_solver
from vars_ode.robustness import (
    ALEXNET_IMAGENET_C_ERRORS,
    ALEXNET_IMAGENET_CLEAN_ERROR,
    Outcome,
    available,
    outcomes,
    pgd,
    square,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*made for 224 pixels")
SIZES = {"clean": 10, "cifar-10-c": 10, "cifar-100-c": 100}  # classes of the model, else 1000
EPS = 8 / 255


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Saved models by their classes: of grey pictures with 10, of colours with more."""
    found = {}
    for classes, channels in ((10, 1), (100, 3), (1000, 3)):
        torch.manual_seed(0)
        options = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 7}
        options |= {"class_token": False, "global_pool": "avg"}
        spec = vars_ode.ModelSpec(
            "vit_tiny_patch16_224", "vars-d", img_size=28, in_chans=channels, num_classes=classes, model_options=options
        )
        model = spec.build()
        if classes == 10:
            Preprocessing((1, 28, 28), (0.0,), (1.0,), 1.0).record_in(model)
            with torch.no_grad():  # a head that tells some classes apart
                model.blocks[0].attn.proj.weight.mul_(20)  # so that attention, and its solve, matter
                images, labels = (tensor[:500] for tensor in fashion_mnist("train").tensors)
                features = model.eval().forward_head(model.forward_features(images), pre_logits=True)
                with_one = torch.cat([features, torch.ones(500, 1)], 1)
                fitted = torch.linalg.lstsq(with_one, torch.eye(10)[labels]).solution
                model.head.weight.copy_(fitted[:-1].T)
                model.head.bias.copy_(fitted[-1])
        found[classes] = tmp_path_factory.mktemp("models") / str(classes)
        vars_ode.save_pretrained(model, found[classes])
    return found


def settings(*conditions: str, **options: Any) -> EvaluationSettings:
    quick = {"images": 4, "eps": EPS, "queries": 5, "steps": 2, "draws": 2, "severities": (1,)}
    return EvaluationSettings(conditions=conditions, **{**quick, **options})


@dataclass(frozen=True)
class ConditionCase:
    """A condition: a tree for it, the model's classes, and which results come out of it."""

    results: tuple[tuple[str, str], ...]  # benchmark and condition
    classes: int = 10
    tree: Callable[[Path], Path] | None = None


def _tree(name: str) -> dict[str, Any]:
    return {"tree": DATA[name].make, "classes": DATA[name].num_classes}


CASES = {
    # A new condition enters by a row.
    "clean": ConditionCase((("clean", "clean"),)),
    "small": ConditionCase(tuple(("small", name) for name in available("small"))),
    "small_fog": ConditionCase((("small", "small_fog"),)),
    "contrast": ConditionCase((("imagenet-c", "contrast"),)),
    "imagenet-c": ConditionCase((("imagenet-c", "gaussian_noise"), ("imagenet-c", "fog")), **_tree("imagenet-c")),
    "imagenet-a": ConditionCase((("imagenet-a", "imagenet-a"),), **_tree("imagenet-a")),
    "imagenet-r": ConditionCase((("imagenet-r", "imagenet-r"),), **_tree("imagenet-r")),
    "imagenet-sketch": ConditionCase((("imagenet-sketch", "imagenet-sketch"),), **_tree("imagenet-sketch")),
    "imagenetv2": ConditionCase((("imagenetv2", "imagenetv2"),), **_tree("imagenetv2")),
    "cifar-10-c": ConditionCase((("cifar-10-c", "gaussian_noise"), ("cifar-10-c", "fog")), **_tree("cifar-10-c")),
    "cifar-100-c": ConditionCase((("cifar-100-c", "gaussian_noise"), ("cifar-100-c", "fog")), **_tree("cifar-100-c")),
    "fgsm": ConditionCase((("attacks", "fgsm"),)),
    "pgd": ConditionCase((("attacks", "pgd"),)),
    "square": ConditionCase((("attacks", "square"),)),
    "autoattack": ConditionCase((("attacks", "autoattack"),)),
    "masking": ConditionCase(
        tuple(
            ("masking", name)
            for name in (
                "white-box",
                "through single-step",
                "through rk4@5",
                "through nesterov",
                "over 2 draws of features",
                "square",
            )
        )
    ),
}


def test_every_condition_has_a_case() -> None:
    assert set(CONDITIONS) <= CASES.keys()
    assert set(BENCHMARKS) <= CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_what_each_condition_measures(name: str, models: dict[int, Path], tmp_path: Path) -> None:
    case = CASES[name]
    options: dict[str, Any] = {} if case.tree is None else {"trees": {name: str(case.tree(tmp_path / "tree"))}}
    if case.classes != 10 or name.startswith("cifar"):
        options["data"] = str(class_tree(tmp_path / "clean", WNIDS[:10] if case.classes == 10 else WNIDS[:2]))
    if case.classes == 100:
        options["data"] = str(class_tree(tmp_path / "hundred", [f"{i:03}" for i in range(100)], each=1))
    if name == "masking":
        options["transfer"] = "single-step; rk4@5; nesterov"
    if name == "autoattack":
        options |= {"images": 1, "eps": 0.5}
    found = run_evaluation(models[case.classes], settings(name, **options), tmp_path / "out", card=False)
    assert list(found.outcomes) == [
        Key(benchmark, condition, int(benchmark in ("small", "imagenet-c", "cifar-10-c", "cifar-100-c")))
        for benchmark, condition in case.results
    ]
    assert {len(outcome) for outcome in found.outcomes.values()} == {options.get("images", 4)}
    again = read_evaluation(tmp_path / "out")
    assert again.record == json.loads(json.dumps(found.record))
    for key, outcome in found.outcomes.items():
        for field in ("indices", "labels", "predictions"):
            assert torch.equal(getattr(again.outcomes[key], field), getattr(outcome, field))
    with (tmp_path / "out" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["accuracy"]) for row in rows] == [outcome.accuracy for outcome in found.outcomes.values()]
    assert not (tmp_path / "out" / "parts").exists()


@pytest.fixture
def data() -> TensorDataset:
    return TensorDataset(*fashion_mnist("test").tensors)


def test_results_are_those_of_the_library(models: dict[int, Path], data: TensorDataset, tmp_path: Path) -> None:
    """Corruption noise and the starts of PGD are keyed alike, so that single images agree."""
    options = settings("clean", "small_gaussian_noise", "small_fog", "pgd", images=40, seed=3)
    found = run_evaluation(models[10], options, tmp_path / "out", batch_size=7)
    model = vars_ode.load_pretrained(models[10])
    attacks = {"pgd": partial(pgd, eps=EPS, step_size=EPS / 2, num_steps=2, seed=3)}
    chosen = torch.arange(0, 1000, 25)
    part = TensorDataset(*(tensor[chosen] for tensor in data.tensors))
    names = [key.condition for key in found.outcomes]
    expected = list(outcomes(model, part, names, [1], attacks=attacks, seed=3, indices=chosen))
    for ours, theirs in zip(found.outcomes.values(), expected, strict=True):
        assert torch.equal(ours.indices, theirs.indices)
        assert torch.equal(ours.predictions, theirs.predictions)
    assert found.accuracy() > 0.3
    assert found.accuracy("attacks", "pgd") < found.accuracy()


def test_an_interrupted_evaluation_goes_on(
    models: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = settings("clean", "small_fog", "small_contrast", "fgsm")
    whole = run_evaluation(models[10], options, tmp_path / "whole")
    measured, measure = [], run._measured

    def stops_at_the_third(step: Any, *rest: Any) -> Any:
        measured.append(step.key.condition)
        if len(measured) == 3:
            raise KeyboardInterrupt
        return measure(step, *rest)

    monkeypatch.setattr(run, "_measured", stops_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run_evaluation(models[10], options, tmp_path / "out")
    assert list(read_evaluation(tmp_path / "out").outcomes) != []
    assert read_evaluation(tmp_path / "out").record["status"] == "running"
    with pytest.raises(ValueError, match="is not finished"):
        read_evaluation(tmp_path / "out").summary  # noqa: B018 (a property)
    found = run_evaluation(models[10], options, tmp_path / "out")
    assert measured == ["clean", "small_fog", "small_contrast", "small_contrast", "fgsm"]
    assert found.summary == whole.summary
    files = [(tmp_path / name / "outcomes.npz").read_bytes() for name in ("whole", "out")]
    assert len(files[0]) == len(files[1])
    run_evaluation(models[10], replace(options, conditions=("small_occlusion",)), tmp_path / "out")
    assert measured[5:] == ["small_occlusion"]
    assert len(read_evaluation(tmp_path / "out").outcomes) == 5  # those of before are kept


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed 0 there, 1 now"),
        ({"images": 3}, "images 4 there, 3 now"),
        ({"solver": "euler@3"}, "the solve"),
        ({"eps": 0.5}, "eps of attacks fgsm 0.03.* there, 0.5 now"),
        ({"norm": "l2"}, "norm of attacks fgsm 'linf' there, 'l2' now"),
    ],
)
def test_other_settings_are_refused(changes: dict, message: str, models: dict[int, Path], tmp_path: Path) -> None:
    options = settings("clean", "fgsm")
    run_evaluation(models[10], options, tmp_path)
    before = (tmp_path / "evaluation.json").read_bytes()
    with pytest.raises(ValueError, match=message):
        run_evaluation(models[10], replace(options, **changes), tmp_path)
    assert (tmp_path / "evaluation.json").read_bytes() == before


def test_another_model_is_refused(models: dict[int, Path], tmp_path: Path) -> None:
    run_evaluation(models[10], settings("clean"), tmp_path / "out")
    model = vars_ode.load_pretrained(models[10])
    with torch.no_grad():
        model.head.bias[0] += 1e-3
    vars_ode.save_pretrained(model, tmp_path / "other")
    with pytest.raises(ValueError, match=r"the weights '[0-9a-f]+' there, '[0-9a-f]+' now"):
        run_evaluation(tmp_path / "other", settings("clean"), tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no evaluation"):
        run_evaluation(models[10], settings("clean"), tmp_path / "full")


PROCESSES = settings("clean", "small_gaussian_noise", "pgd", images=None, severities=(2,), steps=1)


def _process(rank: int, port: int, model: str, data: str, out: str) -> None:
    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in world.items()})
    torch.set_num_threads(1)
    run_evaluation(model, replace(PROCESSES, data=data), out, batch_size=8, device="cpu")
    torch.distributed.destroy_process_group()


def test_two_processes_count_every_image_once(models: dict[int, Path], tmp_path: Path) -> None:
    tree = image_folder(tmp_path / "tree", per_class=7, classes=10, side=30)  # 70 pictures: 9 batches, the last of 6
    alone = run_evaluation(models[10], replace(PROCESSES, data=str(tree)), tmp_path / "one", batch_size=8)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = forkserver()
    arguments = (port, str(models[10]), str(tree), str(tmp_path / "two"))
    started = [context.Process(target=_process, args=(rank, *arguments)) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0, 0]
    for name in ("results.csv", "outcomes.npz"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert {len(outcome) for outcome in alone.outcomes.values()} == {70}


def test_subsets_are_compared_among_their_classes(models: dict[int, Path], tmp_path: Path) -> None:
    tree = DATA["imagenet-a"].make(tmp_path / "a")
    clean = str(class_tree(tmp_path / "clean", WNIDS[:2]))
    options = settings("imagenet-a", trees={"imagenet-a": str(tree)}, data=clean)
    (outcome,) = run_evaluation(models[1000], options, tmp_path / "out").outcomes.values()
    model = vars_ode.load_pretrained(models[1000])
    pictures = vars_ode.data.open_benchmark("imagenet-a", tree, Preprocessing.of(model), 1000)[0]
    images = torch.stack([pictures.open()[i][0] for i in range(4)])
    logits = Preprocessing.of(model).normalized(model)(images)
    inside = torch.zeros(1000, dtype=torch.bool)
    inside[list(pictures.classes or ())] = True
    assert torch.equal(outcome.predictions, logits.masked_fill(~inside, -torch.inf).argmax(1))
    assert not inside[logits.argmax(1)].all()  # among all classes, another one had won


def test_damaged_pictures_are_left_out_and_named(models: dict[int, Path], tmp_path: Path) -> None:
    tree = class_tree(tmp_path / "tree", [f"c{i}" for i in range(10)], each=1)
    bad = tree / "c3" / "picture0.png"
    bad.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=str(bad)):
        run_evaluation(models[10], settings("clean", data=str(tree), images=None), tmp_path / "out")
    options = settings("clean", data=str(tree), images=None, skip_unreadable=True)
    for workers in (0, 1):
        found = run_evaluation(models[10], options, tmp_path / f"skipped{workers}", workers=workers)
        assert found.outcomes[Key("clean", "clean", 0)].indices.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9]
        (entry,) = found.record["conditions"]
        assert entry["images"] == 9
        assert str(bad) in entry["unreadable"][0]


@pytest.fixture(scope="module")
def whole_imagenet_c(models: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Evaluated on all corruptions and severities, with a picture in each."""
    root = tmp_path_factory.mktemp("imagenet-c")
    for place, name in enumerate(IMAGENET_C):
        for severity in range(1, 6):
            put(root / "c" / name / str(severity) / WNIDS[place] / "0.JPEG", 10 * place + severity)
    clean = class_tree(root / "clean", WNIDS[:2], each=1)
    options = EvaluationSettings(str(clean), ("clean", "imagenet-c"), {"imagenet-c": str(root / "c")})
    run_evaluation(models[1000], options, root / "out", card=False)
    return root


def test_mce_by_alexnet_and_by_another_model(models: dict[int, Path], whole_imagenet_c: Path, tmp_path: Path) -> None:
    found = read_evaluation(whole_imagenet_c / "out")
    errors = found.errors("imagenet-c")
    assert list(errors) == list(IMAGENET_C)
    assert {len(values) for values in errors.values()} == {5}
    summary = found.summary["corruptions"]["imagenet-c"]
    assert summary["images"] == "read"
    ratios = [np.mean(errors[name]) / ALEXNET_IMAGENET_C_ERRORS[name][0] for name in IMAGENET_C]
    assert summary["mce"] == pytest.approx(100 * np.mean(ratios))
    clean = 1 - found.accuracy()
    relative = [
        (np.mean(errors[name]) - clean) / (ALEXNET_IMAGENET_C_ERRORS[name][0] - ALEXNET_IMAGENET_CLEAN_ERROR)
        for name in IMAGENET_C
    ]
    assert summary["relative_mce"] == pytest.approx(100 * np.mean(relative))
    options = EvaluationSettings(**{**found.record["settings"], "conditions": ("clean", "imagenet-c")})
    options = replace(options, severities=None)
    out = whole_imagenet_c / "out"
    again = run_evaluation(models[1000], options, out, baseline=out, card=False)
    assert again.summary["baseline"]["imagenet-c"]["mce"] == pytest.approx(100)
    fewer = replace(options, severities=(1, 2))
    part = run_evaluation(models[1000], fewer, tmp_path / "part", baseline=out, card=False)
    assert "five severities are needed" in part.summary["corruptions"]["imagenet-c"]["mce_missing"]
    assert part.summary["baseline"]["imagenet-c"]["mce"] == pytest.approx(100)
    back = run_evaluation(models[1000], options, out, baseline=tmp_path / "part", card=False)
    assert back.summary["baseline"]["imagenet-c"] == {
        "missing": "the baseline was not measured under imagenet-c gaussian_noise 3"
    }


def test_corruptions_of_other_images_are_not_compared(models: dict[int, Path], tmp_path: Path) -> None:
    run_evaluation(models[10], settings("small_fog", images=5), tmp_path / "base")
    found = run_evaluation(models[10], settings("small_fog"), tmp_path / "out", baseline=tmp_path / "base")
    assert "on other images under small small_fog 1" in found.summary["baseline"]["small"]["missing"]
    assert found.summary["corruptions"]["small"]["images"] == "made"
    assert "give --baseline" in found.summary["corruptions"]["small"]["mce_missing"]
    assert errors_of(found.outcomes, "small")["small_fog"] == (1 - found.accuracy("small", "small_fog", 1),)


def test_the_solve_is_the_one_that_is_named(models: dict[int, Path], data: TensorDataset, tmp_path: Path) -> None:
    options = settings("clean", images=100)
    found = run_evaluation(models[10], replace(options, solver="euler@40"), tmp_path / "out")
    assert "t1 40.0" in found.record["model"]["solve"]
    images = data.tensors[0][::10]
    model = vars_ode.load_pretrained(models[10])
    expected = with_solver(model, "euler", t1=40.0)(images).argmax(1)
    assert torch.equal(found.outcomes[Key("clean", "clean", 0)].predictions, expected)
    assert not torch.equal(model(images).argmax(1), expected)


# ---------------------------------------------------------------- masking


def _outcome(correct: list[int]) -> Outcome:
    labels = torch.zeros(len(correct), dtype=torch.int64)
    return Outcome("masking", 0, torch.arange(len(correct)), labels, 1 - torch.tensor(correct))


def test_a_warning_where_another_attack_beats_the_white_box() -> None:
    white, worse = _outcome([1] * 8 + [0] * 2), _outcome([1] * 9 + [0])
    found = masking_summary({Key("masking", "white-box", 0): white, Key("masking", "square", 0): worse})
    assert found == {
        "table": [
            {"attack": "white-box", "accuracy": 0.8, "only_by_this": 0},
            {"attack": "square", "accuracy": 0.9, "only_by_this": 0},
            {"attack": "all together", "accuracy": pytest.approx(0.8), "only_by_this": 0},
        ],
        "warnings": [],
    }
    better, slightly = _outcome([0] * 10), _outcome([0] + [1] * 7 + [0] * 2)
    for outcome, told in ((better, "the gradient is masked"), (slightly, "chance explains")):
        found = masking_summary({Key("masking", "white-box", 0): white, Key("masking", "square", 0): outcome})
        assert found is not None
        assert len(found["warnings"]) == 1
        assert told in found["warnings"][0]
    assert masking_summary({Key("clean", "clean", 0): white}) is None


def test_a_masked_model_is_found_out(data: TensorDataset) -> None:
    """Logits in steps, with next to no gradient but where they are already wrong."""
    torch.manual_seed(0)
    images, labels = (tensor[:200] for tensor in data.tensors)
    train, targets = (tensor[:1000] for tensor in fashion_mnist("train").tensors)
    means = torch.stack([train[targets == label].mean(0) for label in range(10)]).flatten(1)
    linear = nn.Linear(784, 10).requires_grad_(False)
    linear.weight.copy_(means)
    linear.bias.copy_(-means.square().sum(1) / 2)

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, 1, 1)

        def forward(self, pictures: Tensor) -> Tensor:
            logits = linear(pictures.flatten(1))
            return logits.detach() + 1e-3 * torch.sin(1e3 * logits)  # a gradient that leads nowhere

    subject = Subject(Masked(), Preprocessing((1, 28, 28), (0,), (1,)), 10)
    steps = plan(subject, settings("masking", eps=0.05, queries=200, steps=5))
    assert [step.key.condition for step in steps] == ["white-box", "square"]  # no layers, no features
    found = {}
    for step in steps:
        assert step.attack is not None
        moved = step.attack(subject.classifier, images, labels, torch.arange(200))
        predictions = subject.classifier(moved).argmax(1)
        found[step.key] = Outcome(step.key.condition, 0, torch.arange(200), labels, predictions)
    summary = masking_summary(found)
    assert summary is not None
    (warning,) = summary["warnings"]
    assert "'square'" in warning
    assert "the gradient is masked" in warning


@pytest.mark.parametrize("attention", ["vars-d", "vars-sd-factor", "performer"])
def test_features_are_drawn_anew(attention: str) -> None:
    options = {"embed_dim": 16, "depth": 2, "num_heads": 2}
    model = vars_ode.ModelSpec("vit_nano_patch4_28", attention, model_options=options).build()
    state = torch.get_rng_state()
    copies = [redrawn(model, 0, number) for number in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    first, same, other = ([part.projection for part in random_features(copy).values()] for copy in copies)
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not torch.equal(first[0], first[1])
    own = [part.projection for part in random_features(model).values()]
    assert not any(torch.equal(a, b) for a, b in zip(first, own, strict=True))
    assert next(copies[0].parameters()) is next(model.parameters())
    assert not random_features(vars_ode.ModelSpec("vit_nano_patch4_28", "softmax").build())


def test_transfers_are_what_their_names_say(models: dict[int, Path], data: TensorDataset) -> None:
    model = vars_ode.load_pretrained(models[10]).requires_grad_(False)
    subject = Subject(model, Preprocessing.of(model), 10)
    steps = plan(subject, settings("masking", transfer="euler@1; nesterov", transfer_adjoints=()))
    images, labels = (tensor[:6] for tensor in data.tensors)
    indices = torch.arange(6)
    for step in steps[1:3]:
        assert step.attack is not None
        solver = {"euler@1": ("euler", 1.0), "nesterov": ("nesterov", None)}[
            step.key.condition.removeprefix("through ")
        ]
        if solver[1] is None:
            continue
        expected = pgd(with_solver(model, solver[0], t1=solver[1]), images, labels, EPS, EPS / 2, 2, indices=indices)
        assert torch.equal(step.attack(model, images, labels, indices), expected)
    assert torch.equal(
        steps[-1].attack(model, images, labels, indices), square(model, images, labels, EPS, 5, indices=indices)
    )
    with pytest.raises(ValueError, match="truncated"):  # at once, and not after hours
        plan(subject, settings("masking", transfer_adjoints=("truncated",)))
    resting = Subject(with_solver(model, "nesterov", adjoint="implicit"), subject.preprocessing, 10)
    names = [step.key.condition for step in plan(resting, settings("masking"))]
    assert names[1:4] == ["through single-step", "through euler@20", "through the adjoint truncated"]


# ---------------------------------------------------------------- card, reading, command line


def test_the_card_gets_a_section_and_keeps_the_rest(models: dict[int, Path], tmp_path: Path) -> None:
    vars_ode.save_pretrained(vars_ode.load_pretrained(models[10]), tmp_path / "model")
    card = tmp_path / "model" / "README.md"
    card.write_text("# Mine\n\nWritten by me.\n", encoding="utf-8")
    run_evaluation(tmp_path / "model", settings("clean"), tmp_path / "out")
    first = card.read_text(encoding="utf-8")
    assert first.startswith("# Mine\n\nWritten by me.\n")
    assert "| clean |" in first
    card.write_text(f"{first}\nMore of mine.\n", encoding="utf-8")
    found = run_evaluation(tmp_path / "model", settings("clean", "fgsm"), tmp_path / "out")
    second = card.read_text(encoding="utf-8")
    assert second.startswith("# Mine\n\nWritten by me.\n")
    assert second.rstrip().endswith("More of mine.")
    assert (second.count(START), second.count(END), second.count("## Measured accuracy")) == (1, 1, 1)
    assert f"| attacks/fgsm | {100 * found.accuracy('attacks', 'fgsm'):.1f} % |" in second
    run_evaluation(tmp_path / "model", settings("clean", "fgsm", "small_fog"), tmp_path / "out", card=False)
    assert card.read_text(encoding="utf-8") == second


def test_reading_refuses_what_is_no_evaluation(models: dict[int, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no evaluation"):
        read_evaluation(tmp_path)
    run_evaluation(models[10], settings("clean"), tmp_path / "out")
    arrays = dict(np.load(tmp_path / "out" / "outcomes.npz", allow_pickle=False))
    assert {name: values.dtype.name for name, values in arrays.items()} == {
        "clean/clean/0/index": "int32",
        "clean/clean/0/label": "int16",
        "clean/clean/0/prediction": "int16",
        "clean/clean/0/correct": "bool",
    }
    for content in (b"", b"PK\x03\x04broken", (tmp_path / "out" / "outcomes.npz").read_bytes()[:100]):
        (tmp_path / "out" / "outcomes.npz").write_bytes(content)
        with pytest.raises(ValueError, match="is damaged"):
            read_evaluation(tmp_path / "out")
    np.savez(tmp_path / "out" / "outcomes.npz", **{"clean/clean/0/index": np.array([{}], dtype=object)})
    with pytest.raises(ValueError, match="is damaged"):
        read_evaluation(tmp_path / "out")
    (tmp_path / "out" / "evaluation.json").write_text("{}")
    with pytest.raises(ValueError, match="format version None"):
        read_evaluation(tmp_path / "out")


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["evaluate", *arguments])


def test_the_command(models: dict[int, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    quick = ["--images", "12", "--eps", "8/255", "--queries", "3", "--draws", "1", "--steps", "1"]
    result = invoke(str(models[10]), "--conditions", "clean,small_fog,masking", *quick, "--out", str(out))
    assert result.exit_code == 0, result.output
    for told in ("vit_tiny_patch16_224 with vars-d", "clean", "all together", "no mCE by AlexNet"):
        assert told in result.output
    assert read_evaluation(out).record["settings"]["eps"] == EPS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--conditions", "cleen"], "did you mean 'clean'"),
        (["--conditions", ""], "there are no conditions"),
        (["--conditions", "imagenet-a"], "needs its folder; give it with --imagenet-a DIR"),
        (["--imagenet-r", "somewhere"], "not among the conditions"),
        (["--conditions", "small_fog", "--severities", "4"], "has the severities 1 to 3"),
        (["--severities", "one"], "whole numbers"),
        (["--eps", "8/0"], "--eps takes a number"),
        (["--eps", "-1"], "eps"),
        (["--norm", "l1"], "unknown norm 'l1'"),
        (["--solver", "eular@3"], "did you mean 'euler'"),
        (["--solver", "euler@1,2"], "under one solve"),
        (["--transfer-adjoints", "truncatd"], "did you mean 'truncated'"),
        (["--data", "nowhere"], "there is no folder nowhere"),
        (["--images", "5000"], "there are 1000 pictures"),
        (["--baseline", "nowhere"], "holds no evaluation"),
        (["--batch-size", "0"], "batch_size"),
        (["--device", "cuda"], "there is no GPU"),
    ],
)
def test_mistakes_of_a_command(
    arguments: list[str], message: str, models: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = invoke(str(models[10]), *arguments, "--out", str(tmp_path / "out"))
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert "Traceback" not in result.output
