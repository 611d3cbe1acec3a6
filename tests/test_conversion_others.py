"""Conversion to the dictionaries of random features, annealing, attention maps, the commands and the bench."""

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conversion_cases import CASES, relative_difference
from torch import Tensor, nn
from typer.testing import CliRunner

import solvers
import vars_ode
from vars_ode import (
    StaticDynamic,
    VARSAttention,
    anneal,
    attention_maps,
    convert_attention,
    load_pretrained,
    set_solver,
)
from vars_ode.bench.convert import convert as bench
from vars_ode.cli import app
from vars_ode.conversion import contracts, convertible_attentions
from vars_ode.models import vars_layers


def converted(name: str, attention: str = "vars-softmax", **options: Any) -> nn.Module:
    model = CASES[name].build()
    convert_attention(model, attention, **options)
    return model


@pytest.mark.parametrize("name", ["vit", "vit, query-key norm", "eva02", "grouped keys"])
def test_rows_of_queries_and_values_are_copied(name: str) -> None:
    original, model = CASES[name].build(), converted(name, "vars-d", images=CASES[name].images())
    x = torch.randn(2, 5, 48)
    for old, new in ((each.blocks[0].attn for each in (original, model)),):
        q, k, v = new.queries_keys_values(x)
        untied = contracts.vars_layer(old, {"dictionary": "softmax"})
        expected = untied.queries_keys_values(x)
        assert k is q
        torch.testing.assert_close((q, v), (expected[0], expected[2]))
        assert new.proj is not old.proj
        assert torch.equal(new.proj.weight, old.proj.weight)


@pytest.mark.parametrize(
    ("name", "grids", "prefix"),
    [
        ("vit", [(4, 4), (4, 4)], 1),
        ("dinov2, registers", [(4, 4), (4, 4)], 5),
        ("deit, two prefix tokens", [(4, 4), (4, 4)], 2),
        ("dinov3", [(4, 4), (4, 4)], 5),
        ("pit", [(7, 7), (4, 4), (2, 2)], 1),
    ],
)
def test_static_templates_get_grid_and_prefix_of_the_model(
    name: str, grids: list[tuple[int, int]], prefix: int
) -> None:
    model = converted(name, "vars-sd", num_features=4)
    choices = [layer.dictionary_choice for layer in vars_layers(model).values() if isinstance(layer, VARSAttention)]
    assert choices == [StaticDynamic(grid, num_prefix_tokens=prefix) for grid in grids]
    assert model(CASES[name].images()).isfinite().all()


@pytest.mark.parametrize("attention", ["vars-d-factor", "vars-sd-coupling", "vars-d-monotone", "vars-sd-dictionary"])
def test_the_learned_matrix_is_fitted_and_the_report_says_so(attention: str) -> None:
    case = CASES["vit"]
    model, images = case.build(), case.images(8)
    original = copy.deepcopy(model)
    torch.manual_seed(0)
    report = convert_attention(model, attention, images=images, num_features=8)
    assert not report.lossless
    assert "K was fitted on the given images" in str(report)
    assert "change" in str(report)
    fitted = dict(report.differences)
    assert fitted.keys() == {"blocks.0.attn", "blocks.1.attn"}
    identity = copy.deepcopy(model)
    for layer in vars_layers(identity).values():
        fresh = VARSAttention(48, 3, num_features=8, dictionary=layer.dictionary_choice, learned=layer.learned.name)
        layer.learned.load_state_dict(fresh.learned.state_dict())
    tokens: dict[str, Tensor] = {}
    original.blocks[0].attn.register_forward_hook(lambda module, args, out: tokens.update(x=args[0], y=out))
    with torch.no_grad():
        original(images)
        far, near = (
            float((each.blocks[0].attn(tokens["x"]) - tokens["y"]).norm() / tokens["y"].norm())
            for each in (identity, model)
        )
    assert near == pytest.approx(fitted["blocks.0.attn"], rel=1e-4)
    assert near < 0.98 * far


def test_what_is_converted_to_random_features_is_saved_with_its_grid(tmp_path: Path) -> None:
    model, images = converted("eva02", "vars-sd-coupling", num_features=4), CASES["eva02"].images()
    vars_ode.save_pretrained(model, tmp_path)
    with torch.no_grad():
        assert torch.equal(load_pretrained(tmp_path)(images), model(images))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention": "vars-sd", "images": torch.zeros(1, 3, 20, 20)}, "give it a few of its own as images="),
        ({"attention": "vars-d", "learned": "factor"}, "has no option 'learned'"),
    ],
)
def test_what_cannot_be_fitted_changes_nothing(arguments: dict[str, Any], message: str) -> None:
    model = CASES["vit"].build()
    with pytest.raises(ValueError, match=message):
        convert_attention(model, **arguments)
    assert not vars_layers(model)


class Adapted(nn.Linear):
    """As adapters of low rank have it: a linear map and more."""


def test_projections_that_are_no_linear_maps_are_refused_where_rows_are_taken() -> None:
    model = CASES["vit"].build()
    model.blocks[1].attn.qkv = Adapted(48, 144)
    with pytest.raises(ValueError, match=r"qkv is a Adapted.*vars-softmax"):
        convert_attention(model, "vars-d")
    model.blocks[1].attn.qkv.requires_grad_(False)
    assert convert_attention(model).lossless
    assert isinstance(model.blocks[1].attn.qkv, Adapted)
    other = CASES["vit"].build()
    other.blocks[0].attn.qkv = nn.Sequential(other.blocks[0].attn.qkv)
    with pytest.raises(ValueError, match="Sequential without in_features"):
        convert_attention(other)


def test_annealing_raises_sparsity_first_and_the_horizon_second() -> None:
    model = converted("vit")
    layer = model.blocks[0].attn
    annealing = anneal(model, steps=20, sparsity=0.1, t1=5.0, stages=10)
    found = [(layer.sparsity, layer.t1)]
    for _ in range(22):
        annealing.step()
        found.append((layer.sparsity, layer.t1))
    assert found[0] == (0.0, 1.0)
    assert found[10] == (0.1, 1.0)
    assert found[20] == found[22] == (0.1, 5.0)
    assert found == sorted(found)
    assert len(set(found)) == 11
    assert found[4] == pytest.approx((0.04, 1.0))
    assert found[16] == pytest.approx((0.1, 3.4))


def test_annealing_changes_the_outputs_gradually_and_goes_on_after_a_restart() -> None:
    model, images = converted("vit"), CASES["vit"].images()
    annealing = anneal(model, steps=40, sparsity=0.05, t1=3.0, stages=40)
    outputs = []
    with torch.no_grad():
        for update in range(40):
            outputs.append(model(images))
            if update == 25:
                restarted = converted("vit")
                other = anneal(restarted, steps=40, sparsity=0.05, t1=3.0, stages=40)
                other.load_state_dict(annealing.state_dict())
                assert torch.equal(restarted(images), outputs[-1])
            annealing.step()
        outputs.append(model(images))
    jumps = [relative_difference(after, before) for before, after in itertools.pairwise(outputs)]
    assert max(jumps) < 0.5 * relative_difference(outputs[-1], outputs[0])
    assert "update=40 of 40" in repr(annealing)


def test_annealing_keeps_the_length_of_steps_and_refuses_what_is_no_goal() -> None:
    model = converted("vit", solver=solvers.Euler(num_steps=1))
    anneal(model, steps=1, t1=4.0, sparsity=0.0).step()
    assert model.blocks[0].attn.solver == solvers.Euler(dt=1.0)
    before = [layer.settings() for layer in vars_layers(model).values()]
    for wrong in ({"t1": float("inf")}, {"sparsity": -1.0}, {"steps": 0}, {"match": "layers.*"}):
        with pytest.raises(ValueError):
            anneal(model, **{"steps": 3, **wrong})
    assert [layer.settings() for layer in vars_layers(model).values()] == before
    one = anneal(model, 2, match="blocks.0.*")
    with pytest.raises(ValueError, match="of the layers"):
        anneal(model, 2).load_state_dict(one.state_dict())


@torch.no_grad()
def test_attention_maps_over_layers_heads_and_time() -> None:
    model, image = converted("eva02"), CASES["eva02"].images(1)[0]
    maps = attention_maps(model, image)
    assert {name: tuple(each.shape) for name, each in maps.items()} == {
        f"blocks.{index}.attn": (1, 1, 4, 17, 17) for index in (0, 1)
    }
    attention = maps["blocks.0.attn"]
    torch.testing.assert_close(attention.sum(-1), torch.ones_like(attention[..., 0]))  # softmax attention
    set_solver(model, t1=2.0, sparsity=0.01)
    over_time = attention_maps(model, image, times=(0.0, 1.0, 2.0), match="blocks.0.*")["blocks.0.attn"]
    assert over_time.shape == (3, 1, 4, 17, 17)
    assert over_time[0].abs().max() < 1e-8  # the state is zero, to rounding
    assert not torch.allclose(over_time[1], over_time[2])
    torch.testing.assert_close(over_time[2:], attention_maps(model, image)["blocks.0.attn"])
    with pytest.raises(ValueError, match="times"):
        attention_maps(model, image, times=(-1.0,))
    with pytest.raises(ValueError, match="convert_attention"):
        attention_maps(CASES["vit"].build(), image)


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


def test_the_command_converts_weights_from_files_and_folders(tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = timm.create_model("test_vit", num_classes=7).eval()
    images = torch.randn(1, 3, 160, 160)
    torch.save(original.state_dict(), tmp_path / "weights.pth")
    original_folder = tmp_path / "original"
    vars_ode.save_pretrained(original, original_folder)
    for source in (tmp_path / "weights.pth", original_folder, original_folder / "model.safetensors"):
        out = tmp_path / f"from {source.name}"
        code, text = run("convert", "test_vit", "--weights", str(source), "--out", str(out))
        assert code == 0, text
        assert "stay as they were" in text
        with torch.no_grad():
            torch.testing.assert_close(load_pretrained(out)(images), original(images))
    code, text = run(
        "convert", "test_vit", "--match", "blocks.0.*", "--attention", "vars-d", "--out", str(tmp_path / "d")
    )
    assert code == 0, text
    assert list(vars_layers(load_pretrained(tmp_path / "d"))) == ["blocks.0.attn"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet18"], "there is no attention layer"),
        (["vit_tny"], "there is no model 'vit_tny'"),
        (["test_vit", "--weights", "missing.pth"], "missing.pth"),
        (["test_vit", "--weights", "a.pth", "--pretrained"], "not both"),
        (["test_vit", "--attention", "performer"], "convert_attention takes"),
    ],
)
def test_errors_of_the_command_are_sentences(arguments: list[str], message: str, tmp_path: Path) -> None:
    code, text = run("convert", *arguments, "--out", str(tmp_path / "out"))
    assert code == 2
    assert message in text
    assert "Traceback" not in text
    assert not (tmp_path / "out").exists()


def test_the_command_lists_models_and_attentions() -> None:
    code, text = run("models", "test_vit*")
    assert code == 0
    assert "test_vit  vision_transformer  converted" in text
    code, text = run("models", "--family", "swin_transformer")
    assert code == 2
    assert "matches" in text
    code, text = run("models", "--family", "swin_transformer", "--all")
    assert "left alone  (WindowAttention: it attends within windows" in text
    code, text = run("models", "--attentions")
    assert [line.split()[0] for line in text.splitlines()] == list(vars_ode.available_attentions())
    assert sum("conversion" in line for line in text.splitlines()) == len(convertible_attentions())


def test_the_bench_compares_models_that_agree() -> None:
    (row,) = bench("test_vit", batch=1, repeats=3, modes=("eager",))
    assert row.ratio == pytest.approx(row.converted_ms / row.original_ms)
    assert row.ratio == pytest.approx(row.converted_ms / row.original_ms)
