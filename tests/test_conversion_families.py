"""The table of timm's families is what `convert_attention` does, and every family that converts is tested."""

import runpy
from pathlib import Path

import pytest
import timm
from conversion_cases import CASES
from torch import nn

from vars_ode import convert_attention
from vars_ode.conversion.families import OUTCOMES, Family, Table, examine, listed, module_of, timm_models
from vars_ode.models.construction import construct_on_meta

DOCS = Path(__file__).parents[1] / "docs"
TABLE = Table.stored()
SAME_VERSION = timm.__version__ == TABLE.timm


def row_id(family: Family) -> str:
    return family.models[0]


@pytest.mark.parametrize("family", TABLE.families, ids=row_id)
def test_the_smallest_model_of_every_family(family: Family) -> None:
    if not timm.is_model(family.models[0]):
        pytest.skip(f"timm {timm.__version__} does not have {family.models[0]}")
    model = construct_on_meta(family.models[0], {})
    assert examine(model) == (family.outcome, family.converted, family.left_alone)
    if family.outcome in ("converted", "in part"):
        report = convert_attention(model)
        assert report.lossless
        assert bool(report.left_alone) == (family.outcome == "in part")
        assert set(report.left_alone.values()) == set(family.left_alone.values())
        return
    with pytest.raises(ValueError) as caught:
        convert_attention(model)
    assert all(reason in str(caught.value) for reason in family.left_alone.values())
    assert ("there is no attention layer" in str(caught.value)) == (family.outcome == "no attention")


def test_every_family_that_converts_has_a_case() -> None:
    convertible = {family.module for family in TABLE.families if family.outcome in ("converted", "in part")}
    tested = {module_of(case.name) for case in CASES.values() if isinstance(case.name, str)}
    assert convertible - {"metaformer"} <= tested  # a class of its own there, since timm's names fix the sizes
    assert "caformer" in CASES


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if isinstance(case.name, str)])
def test_cases_are_in_the_table_as_they_are(name: str) -> None:
    case = CASES[name]
    family = TABLE.family_of(str(case.name))
    assert family is not None
    assert family.outcome == ("in part" if case.left_alone else "converted")


@pytest.mark.skipif(not SAME_VERSION, reason="the table is of another version of timm")
def test_the_table_has_every_model_once() -> None:
    names = [name for family in TABLE.families for name in family.models]
    assert sorted(names) == sorted(timm_models())
    assert all(module_of(name) == family.module for family in TABLE.families for name in family.models[:1])


def test_the_page_is_what_its_script_writes() -> None:
    script = runpy.run_path(str(DOCS / "timm_families.py"))
    text = (DOCS / "timm_families.md").read_text(encoding="utf-8")
    assert script["page"](TABLE) == text
    assert f"timm {TABLE.timm}" in text
    assert all(f"`{family.module}`" in text for family in TABLE.families if family.outcome != "no attention")


def test_models_are_listed_by_pattern_outcome_and_family() -> None:
    names = [name for name, _ in listed("*", outcome="in part", family="eva")]
    assert names
    assert all(name.startswith("vit_pe_") for name in names)
    assert {family.outcome for _, family in listed("swin*")} == {"left alone"}
    assert {family.outcome for family in TABLE.families} == set(OUTCOMES)


def test_a_model_that_the_table_lacks_is_examined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Table, "family_of", lambda self, name: None)
    ((name, family),) = listed("test_vit3")
    assert (name, family.outcome) == ("test_vit3", "in part")
    assert isinstance(construct_on_meta(name, {}), nn.Module)
