"""`solvers` is a common name: what else may be called so must not be taken for ours."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def run(code, cwd, *path):
    """Run `code` in a fresh interpreter that looks into `path`, in this order, before anything installed."""
    setup = f"import sys; sys.path[:0] = {[str(entry) for entry in path]!r}\n"
    return subprocess.run([sys.executable, "-c", setup + code], cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("kind", ["module", "package"])
def test_a_foreign_solvers_is_named(tmp_path, kind):
    foreign = tmp_path / ("solvers.py" if kind == "module" else "solvers/__init__.py")
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_text("raise SystemExit('the foreign module was run')\n")
    result = run("import vars_ode", tmp_path, tmp_path, REPOSITORY)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert str(foreign) in last
    assert str(REPOSITORY / "solvers" / "__init__.py") in last
    assert "Rename that file" in last


def test_a_foreign_solvers_that_is_loaded_already_is_named(tmp_path):
    (tmp_path / "solvers.py").write_text("")
    result = run("import solvers; sys.path[0:0] = [sys.path.pop(1)]; import vars_ode", tmp_path, tmp_path, REPOSITORY)
    assert "ImportError" in result.stderr
    assert str(tmp_path / "solvers.py") in result.stderr


def test_a_module_made_in_memory_is_not_ours(tmp_path):
    code = "import types; sys.modules['solvers'] = types.ModuleType('solvers'); import vars_ode"
    result = run(code, tmp_path, REPOSITORY)
    assert "ImportError: vars_ode needs its package `solvers`" in result.stderr


HEAVY = {"matplotlib", "accelerate", "scipy.optimize", "torchode", "torchdiffeq"}
USES = {
    "everything": "import vars_ode; from vars_ode import *; assert all(hasattr(vars_ode, n) for n in vars_ode.__all__)",
    "import": "import vars_ode",
    **{
        command: (
            "from vars_ode.cli import app\n"
            f"try:\n  app({command.split()})\nexcept SystemExit as end:\n  assert not end.code"
        )
        for command in ("--help", "train --help")
    },
}
EACH_IN_A_FORK = f"""
import json, os, sys
import timm  # and torch with it; loaded once for all, and none of what is looked for may come with them
for name, code in json.loads(sys.argv[1]).items():
    if os.fork() == 0:
        assert not {{"vars_ode", "solvers"}} & set(sys.modules)
        before = {HEAVY} & set(sys.modules)
        exec(code, {{}})
        print("LOADED", json.dumps([name, sorted({HEAVY} & set(sys.modules)), sorted(before)]), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    """The heavy modules that are loaded after each use, in a process of its own."""
    command = [sys.executable, "-c", EACH_IN_A_FORK, json.dumps(USES)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line for line in run.stdout.splitlines() if line.startswith("LOADED ")]
    found = [json.loads(line.removeprefix("LOADED ")) for line in lines]
    assert all(before == [] for _, _, before in found)
    assert [name for name, _, _ in found] == list(USES), run.stderr
    return {name: set(modules) for name, modules, _ in found}


def test_everything_that_is_exported_is_there(loaded: dict[str, set[str]]) -> None:
    assert loaded["everything"]  # that all of it takes the heavy modules, and that `loaded` sees them


@pytest.mark.parametrize("use", [use for use in USES if use != "everything"])
def test_heavy_modules_are_loaded_where_they_are_used(use: str, loaded: dict[str, set[str]]) -> None:
    assert loaded[use] == set()
