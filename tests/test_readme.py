"""The Python blocks of the README and the docs run as they stand."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import solvers.catalogue
import vars_ode

ROOT = Path(__file__).parent.parent
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
]


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize("block", BLOCKS)
def test_block_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some write files
    for registry in (solvers.catalogue._registry, vars_ode.dictionaries._registry):  # some register their own
        for names in ("_classes", "_aliases"):
            monkeypatch.setattr(registry, names, dict(getattr(registry, names)))
    if '"checkpoint.pth"' in block:  # the reader's own
        recorded = load_file(ROOT / "tests" / "parity" / "lista_vars_d_a.safetensors")
        state = {key.removeprefix("state."): value for key, value in recorded.items() if key.startswith("state.")}
        torch.save({"model": state}, "checkpoint.pth")
    exec(compile(block, "block", "exec"), {})
