"""The Python blocks of the README and the docs run as they stand, and their commands exist."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import torch
from data_cases import CASES as DATA_CASES
from data_cases import WNIDS, class_tree
from demo_cases import TINY
from safetensors.torch import load_file
from trees import image_folder
from typer.main import get_command
from typer.testing import CliRunner

import solvers.catalogue
import vars_ode
from vars_ode.bench import BENCHES
from vars_ode.cli import app
from vars_ode.evaluation import EvaluationSettings, run_evaluation
from vars_ode.study.plan import read_plan

ROOT = Path(__file__).parent.parent
PAGES = {
    page.name: page.read_text(encoding="utf-8")
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}


def fenced(language: str, page: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


BLOCKS = [
    pytest.param(block, id=f"{name}-{number}")
    for name, page in PAGES.items()
    for number, block in enumerate(fenced("python", page))
]
COMMANDS = sorted(
    {
        command.partition("  #")[0].strip()
        for page in PAGES.values()
        for command in re.findall(r"^(?:\$ |    (?=make |vars-ode ))(.+)$", page, re.MULTILINE)
    }
)
SMALLER = {  # options that make a command shorter
    "convergence": ["--images", "1"],
    "dial": ["--images", "8"],
    "evaluate": ["--images", "2", "--queries", "3", "--draws", "1", "--workers", "0"],
    "train": ["--preset", "published", "--epochs", "1", "--batch-size", "4", "--holdout", "0.25", "--workers", "0"],
}


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 3


@pytest.fixture
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks may write files and register what they define."""
    monkeypatch.chdir(tmp_path)
    for registry in (solvers.catalogue._registry, vars_ode.dictionaries._registry):
        for names in ("_classes", "_aliases"):
            monkeypatch.setattr(registry, names, dict(getattr(registry, names)))


@pytest.mark.usefixtures("isolated")
@pytest.mark.parametrize("block", BLOCKS)
def test_block_runs(block: str) -> None:
    if '"checkpoint.pth"' in block:  # the reader's own
        recorded = load_file(ROOT / "tests" / "parity" / "lista_vars_d_a.safetensors")
        state = {key.removeprefix("state."): value for key, value in recorded.items() if key.startswith("state.")}
        torch.save({"model": state}, "checkpoint.pth")
    exec(compile(block, "block", "exec"), {})


def ready_to_train(arguments: list[str]) -> list[str]:
    """Pictures and files where a command supposes them; small pictures and few blocks, as the command trains."""
    image_folder(Path("imagenet/train"), per_class=2, mode="RGB")
    image_folder(Path("imagenet/val"), per_class=1, mode="RGB")
    for option in ("--config", "--init"):
        if option in arguments:
            given = Path(arguments[arguments.index(option) + 1])
            given.parent.mkdir(parents=True, exist_ok=True)
            if option == "--init":
                spec = vars_ode.ModelSpec("vit_tiny_patch16_224", "vars-softmax", model_options={"depth": 1})
                vars_ode.save_pretrained(spec.build(), given)
            else:
                given.write_text("{model: rvt_tiny, data: imagenet, model_kwargs: {depths: [1, 1]}}")
    if "--model" in arguments and "--model-kwargs" not in arguments:
        rvt = arguments[arguments.index("--model") + 1].startswith("rvt")
        arguments = [*arguments, "--model-kwargs", "depths=[1,1]" if rvt else "depth=1"]
    return arguments if "--img-size" in arguments else [*arguments, "--img-size", "32"]


def ready_to_evaluate(arguments: list[str]) -> None:
    """A saved model, and the trees that the command names, of small pictures."""
    given = {name: arguments[arguments.index(name) + 1] for name in arguments if name.startswith("--")}
    classes = {"imagenet": 1000, "cifar10": 10}.get(given.get("--data", ""), 10)
    channels = 3 if "--data" in given else 1
    options = {"embed_dim": 16, "depth": 1, "in_chans": channels, "num_classes": classes}
    vars_ode.save_pretrained(
        vars_ode.ModelSpec("vit_nano_patch4_28", "vars-d", model_options=options).build(), arguments[1]
    )
    if "--data" in given:
        names = WNIDS[:2] if classes == 1000 else WNIDS[:classes]
        class_tree(Path(given["--data"], "val"), names, each=1)
    for name, case in DATA_CASES.items():  # each benchmark's first case is called as it is
        if f"--{name}" in given:
            path = Path(given[f"--{name}"])
            made = case.make(path)
            assert made in (path, path.parent)
    if "--baseline" in given:
        trees = {"imagenet-c": given["--imagenet-c"]}
        measured = EvaluationSettings(given["--data"], ("clean", "imagenet-c"), trees, images=2)
        run_evaluation(arguments[1], measured, given["--baseline"])


def ready_to_report(arguments: list[str]) -> None:
    """An evaluated model in each folder that the command names."""
    for seed, run in enumerate(argument for argument in arguments if "=" in argument):
        vars_ode.save_pretrained(TINY.build("vars-sd-coupling", seed=seed), "model")
        run_evaluation("model", EvaluationSettings(conditions=("clean",), images=4), run.partition("=")[2])


@pytest.mark.parametrize("command", COMMANDS)
def test_command_exists(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, *arguments = shlex.split(command)
    if program == "torchrun":  # in one process here; two are tested elsewhere
        program, arguments = "vars-ode", arguments[arguments.index("vars_ode") + 1 :]
    if program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert [a for a in arguments if "=" not in a and a not in targets] == []
    elif program == "vars-ode" and arguments[0] == "study":  # an hour of trainings: only whether they can be
        plan, names, _ = read_plan(ROOT / arguments[1])
        assert [plan.build(name, seed=0) for name in names]
    elif program == "vars-ode" and arguments[0] == "bench" and arguments[1] in BENCHES:
        assert CliRunner().invoke(app, ["bench", "--help"]).exit_code == 0  # minutes of measuring, tested elsewhere
        known = {option for param in get_command(app).commands["bench"].params for option in param.opts}  # type: ignore[attr-defined]
        assert {argument for argument in arguments if argument.startswith("--")} <= known
    elif program == "vars-ode":
        monkeypatch.chdir(tmp_path)
        if arguments[0] == "dial":  # a run of the demo, where the demo leaves it
            vars_ode.save_pretrained(TINY.build("vars-sd-coupling", seed=0), arguments[1])
        if arguments[0] == "evaluate":
            ready_to_evaluate(arguments)
        if arguments[0] == "report":
            ready_to_report(arguments)
        if arguments[0] == "train":
            arguments = ready_to_train(arguments)
        result = CliRunner().invoke(app, arguments + SMALLER.get(arguments[0], []))
        assert result.exit_code == 0, result.output
    elif program == "python" and arguments[0] != "-m":
        assert (ROOT / arguments[0]).is_file()
    elif program == "python":
        assert arguments[:2] == ["-m", "pytest"]
        assert [a for a in arguments if a.startswith("tests") and not (ROOT / a).exists()] == []
    else:
        assert command in ("pip install .", "pip install -e .")  # the second is what make does as well


@pytest.mark.usefixtures("isolated")
def test_rows_of_the_page_on_extending_are_conformance_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "solvers"))
    page, defined = PAGES["extending.md"], {}
    for block in fenced("python", page):
        exec(compile(block, "block", "exec"), defined)
    for name in ("SSPRK3", "HeavyBall"):
        monkeypatch.setattr(solvers, name, defined[name], raising=False)  # where the page supposes them
    solver_rows, dictionary_rows = fenced("text", page)
    cases = eval(f"[{solver_rows}]", {**vars(importlib.import_module("solver_cases")), "solvers": solvers})
    assert [(case.name, case.solver.__class__) for case in cases] == [
        ("ssprk3", defined["SSPRK3"]),
        ("heavy_ball", defined["HeavyBall"]),
    ]
    (case,) = eval(f"[{dictionary_rows}]", {**defined, **vars(importlib.import_module("core_cases"))})
    assert case.layer().dictionary.__class__ is defined["RectifiedTemplates"]


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 8
