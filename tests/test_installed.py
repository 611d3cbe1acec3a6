"""The wheel: what `pip install` brings, into a folder of its own, without the checkout and without a network."""

import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILT_FROM = ("solvers", "vars_ode", "pyproject.toml", "README.md", "LICENSE")
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
OFFLINE = {**os.environ, "PIP_NO_INDEX": "1", "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the environment's own setuptools from a copy, as a build writes beside its source."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in BUILT_FROM:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    build = ["wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(built), str(source)]
    subprocess.run([*PIP, *build], check=True, env=OFFLINE)
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    install = ["install", "--no-deps", "--target", str(folder), str(wheel)]
    subprocess.run([*PIP, *install], check=True, env=OFFLINE)
    return folder


def test_the_wheel_has_all_files_and_no_others(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    ours = {
        str(path.relative_to(ROOT))
        for package in ("solvers", "vars_ode")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == ours
    assert {"solvers/py.typed", "vars_ode/py.typed", "vars_ode/conversion/families.json"} <= names
    assert any(name.startswith("vars_ode/data/") and name.endswith(".npz") for name in names)


def test_the_metadata_are_those_of_the_project(wheel: Path) -> None:
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    with zipfile.ZipFile(wheel) as content:
        info = next(name.split("/")[0] for name in content.namelist() if ".dist-info/" in name)
        metadata = Parser().parsestr(content.read(f"{info}/METADATA").decode())
        points = configparser.ConfigParser()
        points.read_string(content.read(f"{info}/entry_points.txt").decode())
        licenses = [name for name in content.namelist() if name.startswith(f"{info}/licenses/")]
    assert (metadata["Name"], metadata["Version"]) == (project["name"], project["version"])
    assert dict(points["console_scripts"]) == {"vars-ode": "vars_ode.cli:app"}
    assert len(licenses) == len(project["license-files"])
    required = {line.split(";")[0].strip() for line in metadata.get_all("Requires-Dist") if "extra ==" not in line}
    assert len(required) == len(project["dependencies"])


USE = """
import pathlib, runpy, sys, torch, solvers, vars_ode
from vars_ode.conversion.families import listed
from vars_ode.data import fashion_mnist
folder = pathlib.Path(sys.argv[1]).resolve()
assert all(pathlib.Path(package.__file__).resolve().is_relative_to(folder) for package in (solvers, vars_ode))
assert vars_ode.VARSAttention(8, 1)(torch.randn(1, 4, 8)).shape == (1, 4, 8)
assert len(fashion_mnist("test").tensors[0]) == 1000
assert listed("vit_tiny_patch16_224")
sys.argv = [str(folder / "bin" / "vars-ode"), "--version"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_what_is_installed_works_by_itself(installed: Path, tmp_path: Path) -> None:
    environment = {**OFFLINE, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", USE, str(installed)]
    result = subprocess.run(command, check=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.stdout.startswith("vars-ode ")
