"""The example notebooks: each runs in a new process at a reduced size, and what is committed is clean.

The process is a child of a server that has torch and timm loaded already, which a kernel of Jupyter's takes longer to
load than a reduced notebook to run; one notebook goes through the script and a real kernel.

The first code cell of a notebook is tagged "parameters" and assigns upper-case sizes. A row in `REDUCED` says what
they become here. A notebook with the parameter `STUDY`, the folder of a finished study, gets a tiny one.
"""

import ast
import base64
import importlib.util
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
from demo_cases import TINY
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from notebook_cells import run_cells
from workers import forkserver, in_place_of_spawn

from vars_ode.study.run import run_study

REDUCED: dict[str, dict[str, object]] = {
    "adjoint_memory": {
        "MEMORY_STEPS": (5,),
        "HORIZONS": (2.0,),
        "MODEL_HORIZONS": (2.0,),
        "SHORT": 2.0,
        "LONG": 4.0,
        "BATCH_SIZE": 10,
        "TRAIN_IMAGES": 20,
        "TEST_IMAGES": 20,
        "EPOCHS": 1,
    },
    "attractors": {
        "SEEDS": (0,),
        "EPOCHS": 1,
        "TRAIN_IMAGES": 100,
        "TEST_IMAGES": 20,
        "MAP_IMAGES": 2,
        "STARTS": 2,
        "SCENE_STEPS": 200,
        "TRACE_TIMES": (0, 5),
        "MAP_TIMES": (0.0, 5.0),
    },
    "convergence": {
        "TRAIN_IMAGES": 200,
        "IMAGES": 1,
        "ORDER_STEPS": (8, 16),
        "REFERENCE_STEPS": 256,
        "LONG_REFERENCE_STEPS": 400,
        "LONG_STEPS": (50, 100),
        "TOLERANCES": (1e-2, 1e-3),
        "ITERATIONS": (5, 50),
    },
    "dial": {
        "TRAIN_IMAGES": 100,
        "TEST_IMAGES": 20,
        "EPOCHS": 1,
        "SOLVES": "euler@1,5; douglas_rachford",
        "PATH": (0.0, 1.0, 5.0),
    },
    "convert_pretrained": {
        "TRAIN_IMAGES": 200,
        "TEST_IMAGES": 20,
        "EPOCHS": 1,
        "FINE_TUNING_EPOCHS": 1,
        "SPARSITIES": (0.0, 0.05),
        "HORIZONS": (1.0, 2.0),
    },
    "quickstart": {"TRAIN_IMAGES": 200, "TEST_IMAGES": 100, "EPOCHS": 1},
    "robustness": {"ATTACK_IMAGES": 20, "ATTACK_EPS": (0, 8)},
    "self_attention_limit": {
        "FEATURES": (16, 64),
        "DRAWS": 2,
        "TRAIN_IMAGES": 200,
        "TEST_IMAGES": 100,
        "EPOCHS": 1,
        "HORIZONS": (1, 2),
    },
}

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(path.stem for path in EXAMPLES.glob("*.ipynb"))
IN_A_KERNEL = "quickstart"
SECONDS = 300  # they take ten at most; a limit against runs that hang, also where all cores are busy
MEGABYTES = 2
PAGE = 110  # characters
MACHINE = re.compile(r"(?<![\w.>])/[a-z]+/\w|/Users/|[A-Z]:\\|\bat 0x[0-9a-f]+")  # absolute paths and addresses
PRINTS = re.compile(r"\b(print|display)\(|\.plot\(")


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("examples_execute", EXAMPLES / "execute.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = _script()


def read(name: str) -> NotebookNode:
    return nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parameters(notebook: NotebookNode) -> dict[str, object]:
    """What the parameters cell assigns; fails where it holds anything but plain upper-case assignments."""
    cell = code_cells(notebook)[0]
    assert cell.metadata.get("tags") == ["parameters"], "the first code cell must be tagged 'parameters'"
    found = {}
    for statement in ast.parse(cell.source).body:
        assert isinstance(statement, ast.Assign), f"not a plain assignment: {ast.unparse(statement)}"
        (target,) = statement.targets
        assert isinstance(target, ast.Name)
        assert target.id.isupper(), f"{target.id} is a parameter and not in upper case"
        found[target.id] = ast.literal_eval(statement.value)
    return found


def with_values(notebook: NotebookNode, values: dict[str, object]) -> NotebookNode:
    """The notebook with a cell after its parameters that assigns other values."""
    after_parameters = notebook.cells.index(code_cells(notebook)[0]) + 1
    source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    notebook.cells.insert(after_parameters, nbformat.v4.new_code_cell(source))
    return notebook


def pictures(notebook: NotebookNode) -> int:
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def texts(notebook: NotebookNode) -> list[str]:
    """Everything in the outputs that a reader reads."""
    found = []
    for cell in code_cells(notebook):
        for output in cell.outputs:
            data: dict[str, Any] = output.get("data", {})
            found += [output.get("text", ""), *(text for kind, text in data.items() if kind.startswith("text/"))]
    return found


def shows_something(source: str) -> bool:
    """Whether a cell prints or draws itself; functions that it defines may do so later."""
    return any(
        PRINTS.search(ast.unparse(statement))
        for statement in ast.parse(source).body
        if not isinstance(statement, ast.FunctionDef | ast.ClassDef)
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished study of two attentions, tiny in every respect."""
    settings = replace(TINY, severities=(1, 2), corruptions=("small_gaussian_noise", "small_contrast"))
    folder = tmp_path_factory.mktemp("study") / "demo"
    with in_place_of_spawn():
        failures = run_study(folder, settings, ("softmax", "vars-sd-dictionary"), seeds=1, workers=1)
    assert failures == []
    return folder


def reduced(name: str, request: pytest.FixtureRequest) -> NotebookNode:
    notebook = read(name)
    values = dict(REDUCED[name])
    if "STUDY" in parameters(notebook):
        values["STUDY"] = str(request.getfixturevalue("study"))
    return with_values(notebook, values)


@pytest.mark.parametrize("name", [name for name in NOTEBOOKS if name != IN_A_KERNEL])
def test_runs_at_a_reduced_size(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    cells = code_cells(reduced(name, request))
    with ProcessPoolExecutor(1, forkserver()) as pool:
        found = pool.submit(run_cells, [cell.source for cell in cells], str(tmp_path), script.ENVIRONMENT)
        displayed = found.result(SECONDS)
    for cell, kinds in zip(cells, displayed, strict=True):
        full_size = {kind for output in cell.outputs for kind in output.get("data", {})}
        assert full_size <= kinds, f"a cell that shows {full_size} at its full size shows {kinds}:\n{cell.source}"


def test_runs_in_a_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    for variable, value in script.ENVIRONMENT.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel's default is to draw into the notebook
    committed, notebook = read(IN_A_KERNEL), reduced(IN_A_KERNEL, request)
    script.execute(notebook, tmp_path, SECONDS)
    assert pictures(notebook) == pictures(committed) > 0


def test_every_notebook_has_a_row_of_names_that_it_assigns() -> None:
    assert sorted(REDUCED) == NOTEBOOKS
    for name, values in REDUCED.items():
        assert values.keys() <= parameters(read(name)).keys(), name


def test_a_notebook_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import time; time.sleep(60)")])
    with pytest.raises(TimeoutError):
        script.execute(notebook, tmp_path, seconds=1)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_was_run_from_top_to_bottom(name: str) -> None:
    cells = code_cells(read(name))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert [cell.source for cell in cells if shows_something(cell.source) and not cell.outputs] == []


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_outputs_hold_no_errors_warnings_or_traces_of_a_machine(name: str) -> None:
    notebook = read(name)
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error"] == []
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    assert [text for text in texts(notebook) if MACHINE.search(text)] == []
    pictures = [output for output in outputs if "Figure" in output.get("data", {}).get("text/plain", "")]
    assert [picture for picture in pictures if "image/png" not in picture.data] == []


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_printed_lines_fit_on_a_page(name: str) -> None:
    """Monospaced text does not wrap: longer sentences are to be wrapped, or displayed as Markdown."""
    outputs = [output for cell in code_cells(read(name)) for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert [line for line in printed.splitlines() if len(line) > PAGE] == []


def test_robustness_without_a_study_says_in_a_sentence_how_to_make_one(tmp_path: Path) -> None:
    cells = code_cells(read("robustness"))
    up_to = next(place for place, cell in enumerate(cells) if "read_results(" in cell.source) + 1
    notebook = nbformat.v4.new_notebook(cells=cells[:up_to])
    with pytest.raises(CellExecutionError) as raised:
        script.execute(notebook, tmp_path, SECONDS)
    assert (
        raised.value.evalue
        == "runs/demo holds no finished study: run `vars-ode demo --out runs/demo`, or name another in STUDY."
    )
    (shown,) = [output for output in notebook.cells[-1].outputs if output.output_type == "error"]
    assert shown.traceback == [raised.value.evalue]


def test_one_notebook_that_fails_does_not_keep_the_others_from_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "EXAMPLES", tmp_path)
    for name, source in (("a", "1 / 0"), ("b", "print(6 * 7)")):
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), tmp_path / f"{name}.ipynb")
    before = (tmp_path / "a.ipynb").read_bytes()
    with pytest.raises(SystemExit, match=r"1 of 2 .*: a\.ipynb"):
        script.main([])
    assert "ZeroDivisionError" in capsys.readouterr().out
    assert (tmp_path / "a.ipynb").read_bytes() == before
    assert "42" in (tmp_path / "b.ipynb").read_text()


def test_picture_of_the_readme_is_that_of_the_notebook() -> None:
    outputs = [output for cell in code_cells(read("attractors")) for output in cell.outputs]
    pictures = [
        base64.b64decode(output.data["image/png"]) for output in outputs if "image/png" in output.get("data", {})
    ]
    assert (EXAMPLES.parent / "docs" / "static" / "grouping.png").read_bytes() == pictures[0]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_file_is_small_and_holds_nothing_of_the_run_but_its_outputs(name: str) -> None:
    assert (EXAMPLES / f"{name}.ipynb").stat().st_size < MEGABYTES * 1e6
    notebook = read(name)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    cleaned = script.clean(read(name))
    assert notebook == cleaned
