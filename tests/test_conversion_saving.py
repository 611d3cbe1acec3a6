"""Converted models come back from their folder alone, as they were; what cannot come back is not saved."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conversion_cases import CASES
from torch import nn

import solvers
import vars_ode
from vars_ode import ModelSpec, VARSAttention, convert_attention, load_checkpoint, load_pretrained, save_pretrained
from vars_ode.models import vars_layers
from vars_ode.models.construction import construct_on_meta

# pit, crossvit and mobilevit keep their sizes on no module, so they are described as their names build them, below
NAMED = [
    *("vit", "vit, query-key norm", "vit, parallel branches", "vit, post-norm", "deit3", "deit, two prefix tokens"),
    *("dinov2, registers", "siglip", "flexivit", "hybrid"),
    *("vit, rotary", "vit, rotary, mixed", "pe_core", "eva02", "dinov3", "qwen3", "deepseek", "naflexvit"),
]


def converted(name: str, attention: str = "vars-softmax", **options: Any) -> nn.Module:
    model = CASES[name].build()
    convert_attention(model, attention, **options)
    return model


@pytest.mark.parametrize("name", NAMED)
def test_a_converted_model_comes_back(name: str, tmp_path: Path) -> None:
    model, images = converted(name), CASES[name].images()
    vars_ode.set_solver(model, "rk4", t1=1.5, sparsity=0.02)
    first = next(iter(vars_layers(model)))
    vars_ode.set_solver(model, "euler", match=first)
    save_pretrained(model, tmp_path)
    loaded = load_pretrained(tmp_path)
    settings = [{key: layer.settings() for key, layer in vars_layers(each).items()} for each in (model, loaded)]
    assert settings[1] == settings[0]
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))
    again, report = load_checkpoint(tmp_path)
    assert report.layout == "vars-ode"
    with torch.no_grad():
        assert torch.equal(again(images), model(images))


def test_a_model_converted_in_part_comes_back(tmp_path: Path) -> None:
    for name in ("vit", "eva02"):
        model, images = converted(name, match="*1.attn", sparsity=0.05), CASES[name].images()
        save_pretrained(model, tmp_path / name)
        loaded = load_pretrained(tmp_path / name)
        assert list(vars_layers(loaded)) == list(vars_layers(model))
        with torch.no_grad():
            assert torch.equal(loaded(images), model(images))


@pytest.mark.parametrize("name", ["mobilevit_xxs", "pit_ti_224", "crossvit_9_240"])
def test_models_as_their_names_build_them_can_be_described(name: str) -> None:
    model = construct_on_meta(name, {"num_classes": 7})
    names = convert_attention(model, sparsity=0.1).converted
    spec = ModelSpec.of(model)
    assert (spec.model, spec.num_classes) == (name, 7)
    assert tuple(vars_layers(spec.build_on_meta())) == names


def test_the_description_says_what_was_converted() -> None:
    spec = ModelSpec.of(converted("eva02"))
    assert spec.conversion == {"*": ("vars-softmax", {})}
    assert spec.attention is None
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.as_dict()))) == spec
    assert ModelSpec.of(converted("vit")).attention == "vars-softmax"  # as if it had been built so


def test_timm_reads_the_folder_where_that_is_the_same_model_and_refuses_it_elsewhere(tmp_path: Path) -> None:
    model, images = converted("eva02"), CASES["eva02"].images()
    save_pretrained(model, tmp_path / "single")
    by_timm = timm.create_model(f"local-dir:{tmp_path / 'single'}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(by_timm(images), model(images))
    assert "vars-softmax" in (tmp_path / "single" / "README.md").read_text()
    vars_ode.set_solver(model, t1=3.0)
    save_pretrained(model, tmp_path / "more")
    with pytest.raises(TypeError, match="attn_layer"):
        timm.create_model(f"local-dir:{tmp_path / 'more'}", pretrained=True)


@pytest.mark.parametrize("name", ["caformer", "grouped keys"])
def test_what_could_not_be_built_again_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be described"):
        save_pretrained(converted(name), tmp_path)
    assert not list(tmp_path.iterdir())


def test_settings_of_the_constructor_are_among_what_comes_back() -> None:
    model = converted("eva02", threshold="gelu", dynamics="lca", solver=solvers.RK4(num_steps=2))
    rebuilt = ModelSpec.of(model).build_on_meta()
    layers = [next(m for m in each.modules() if isinstance(m, VARSAttention)) for each in (model, rebuilt)]
    assert layers[0].field == layers[1].field
    assert layers[0].settings() == layers[1].settings()
