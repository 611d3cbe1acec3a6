"""The version is stated in several places: once in each, and the same in all."""

import datetime
import re
from pathlib import Path

import pytest

import vars_ode
from vars_ode.environment import environment

ROOT = Path(__file__).parents[1]
STATED = {
    "pyproject.toml": r'^version = "(.+)"$',
    "CITATION.cff": r"^version: (.+)$",
    "README.md": r"^  version = \{(.+)\},$",
    "CHANGELOG.md": r"^## (\d\S+) - \d{4}-\d\d-\d\d$",
}


@pytest.mark.parametrize("name", STATED)
def test_the_version_is_the_same_everywhere(name: str) -> None:
    first, *_ = re.findall(STATED[name], (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
    assert first == vars_ode.__version__ == environment()["vars-ode"]


def test_the_changelog_is_in_order() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings[0] == "Unreleased"
    releases = [heading.split(" - ") for heading in headings[1:]]
    versions = [[int(part) for part in version.split(".")] for version, _ in releases]
    dates = [datetime.date.fromisoformat(date) for _, date in releases]
    assert versions == sorted(versions, reverse=True)
    assert dates == sorted(dates, reverse=True)
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"date-released: {dates[0]}\n" in citation


def test_entries_stand_once() -> None:
    entries = re.findall(r"^- (.{40,}?)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(entries) > 40
    assert len(set(entries)) == len(entries)
