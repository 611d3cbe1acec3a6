"""`solvers` is a common name: what else may be called so must not be taken for ours."""

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


def loaded(code: str) -> set[str]:
    """The heavy modules that are loaded after some code, in a process of its own."""
    code = f"import sys\n{code}\nprint('LOADED', *sorted({HEAVY} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.splitlines()[-1].split()[1:])


def test_everything_that_is_exported_is_there() -> None:
    code = "import vars_ode; from vars_ode import *; assert all(hasattr(vars_ode, name) for name in vars_ode.__all__)"
    assert loaded(code)  # that all of it takes the heavy modules, and that `loaded` sees them


@pytest.mark.parametrize("arguments", [None, ["--help"], ["train", "--help"]])
def test_heavy_modules_are_loaded_where_they_are_used(arguments: list[str] | None) -> None:
    command = "import vars_ode"
    if arguments is not None:
        command = (
            f"from vars_ode.cli import app\ntry:\n  app({arguments})\nexcept SystemExit as end:\n  assert not end.code"
        )
    assert loaded(command) == set()
