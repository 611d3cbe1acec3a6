"""What results were made with: versions, machine, threads. For bug reports, and kept with every result."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from vars_ode._version import __version__

PACKAGES = ("torch", "timm", "torchdiffeq", "torchode", "numpy", "scipy")


def environment() -> dict[str, str]:
    """Versions, system, processor, devices and threads; the commit too, where this is a git checkout."""
    found = {
        "python": platform.python_version(),
        "vars-ode": __version__,  # an editable install keeps the metadata that it was made with
        **{name: _version(name) for name in PACKAGES},
        "torch": torch.__version__,  # with its build
        "platform": f"{platform.system().lower()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "devices": ", ".join(_devices()),
    }
    commit = _commit()
    return {**found, "commit": commit} if commit else found


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _devices() -> list[str]:
    cuda = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return [*cuda, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def _commit() -> str:
    """Of the checkout that this package lies in, with a mark where files are changed; empty for an installed one."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return ""
    try:
        run = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(run, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
