"""Where tokens lie: known from the model where there is one, inferred without it, and never guessed between two."""

import copy
import pickle
from typing import Any

import pytest
import timm
import torch
from torch import nn

from vars_ode import ModelSpec, StaticDynamic, VARSAttention, VARSConvAttention
from vars_ode.grids import Grid
from vars_ode.models import place_layers, single_step_limit, vars_layers
from vars_ode.models.comparison import differences


def vit(**options: Any) -> Any:
    defaults = {"attn_layer": "vars-sd", "depth": 1, "num_classes": 3, "embed_dim": 24, "num_heads": 3}
    return timm.create_model("vit_tiny_patch16_224", **{**defaults, **options}).eval()


def static_rows(layer: Any, tokens: int, grid: Grid | None = None) -> int:
    """How many leading tokens have no static template, as the layer's own forward pass asks for them."""
    seen = []
    original = layer.dictionary.static_templates

    def watched(*args: Any) -> Any:
        seen.append(original(*args))
        return seen[-1]

    layer.dictionary.static_templates = watched
    try:
        layer(torch.randn(1, tokens, layer.qkv.in_features), grid=grid)
    finally:
        del layer.dictionary.static_templates
    empty = (seen[0][0][0, 0] == 0).all(-1).tolist()
    return empty.index(False)


@pytest.mark.parametrize(
    ("options", "prefix"),
    [
        ({"img_size": (64, 96)}, 1),  # 4 x 6 + 1 = 5 x 5
        ({"img_size": (32, 64)}, 1),  # 2 x 4 + 1 = 3 x 3
        ({"img_size": 32, "reg_tokens": 4}, 5),  # 2 x 2 + 5 = 3 x 3
        ({"img_size": (64, 96), "class_token": False, "global_pool": "avg"}, 0),
    ],
)
def test_a_vision_transformer_of_timm_tells_its_layers_the_grid(options: dict[str, Any], prefix: int) -> None:
    model = vit(**options)
    layer = model.blocks[0].attn
    grid = model.patch_embed.grid_size
    assert layer.layout.grid == grid
    assert static_rows(layer, prefix + grid[0] * grid[1]) == prefix


def test_the_grid_follows_the_images_where_their_size_is_free() -> None:
    model = vit(img_size=64, dynamic_img_size=True)
    for size in ((64, 96), (96, 64), (32, 64), (64, 64)):
        model(torch.randn(1, 3, *size))
        grid = (size[0] // 16, size[1] // 16)
        assert model.blocks[0].attn.layout.grid == grid
        assert static_rows(model.blocks[0].attn, 1 + grid[0] * grid[1]) == 1


def test_the_grid_follows_set_input_size() -> None:
    model = vit(img_size=(64, 96))
    model.set_input_size((96, 64))
    model(torch.randn(1, 3, 96, 64))
    assert model.blocks[0].attn.layout.grid == (6, 4)


def test_distilled_models_have_two_tokens_before_the_grid() -> None:
    model = timm.create_model("deit_tiny_distilled_patch16_224", attn_layer="vars-sd", depth=1, img_size=(64, 96))
    assert model.blocks[0].attn.layout.num_prefix_tokens == 2
    model(torch.randn(1, 3, 64, 96))


@pytest.mark.parametrize("make", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), single_step_limit])
def test_copies_of_a_model_have_a_layout_of_their_own(make: Any) -> None:
    model = vit(img_size=64, dynamic_img_size=True)
    copied = make(model)
    model(torch.randn(1, 3, 64, 96))
    copied(torch.randn(1, 3, 96, 64))
    assert model.blocks[0].attn.layout.grid == (4, 6)
    assert copied.blocks[0].attn.layout.grid == (6, 4)


def test_layers_put_into_a_model_are_placed() -> None:
    model = vit(attn_layer="attn", img_size=(64, 96))
    model.blocks[0].attn = VARSAttention(24, 3, dictionary="static+dynamic")
    place_layers(model)
    assert static_rows(model.blocks[0].attn, 25) == 1


def test_described_models_with_mixed_attention_are_placed() -> None:
    spec = ModelSpec(
        "vit_tiny_patch16_224",
        attention="softmax",
        img_size=(64, 96),
        model_options={"depth": 2, "embed_dim": 24, "dynamic_img_size": True},
        others={"blocks.1.attn": ("vars-sd", {})},
    )
    model: Any = spec.build()
    model(torch.randn(1, 3, 96, 64))
    (layer,) = vars_layers(model).values()
    assert layer.layout.grid == (6, 4)
    assert list(differences(model, spec.build())) == []  # where the last image lay is no part of the model


def test_the_filters_of_vars_s_lie_on_the_models_grid() -> None:
    model = vit(
        attn_layer=VARSConvAttention.configured(grid=(4, 9)),
        img_size=64,
        dynamic_img_size=True,
        class_token=False,
        global_pool="avg",
    )
    model(torch.randn(1, 3, 96, 96))
    layer = model.blocks[0].attn
    x = torch.randn(1, 36, 24)
    assert layer(x).equal(layer(x, grid=(6, 6)))


def test_other_token_counts_than_the_models_are_refused() -> None:
    layer = vit(img_size=(64, 96)).blocks[0].attn
    with pytest.raises(ValueError, match=r"1 tokens before a grid of \(4, 6\), 25 in all, but 17 came.*patch dropout"):
        layer(torch.randn(1, 17, 24))
    layer(torch.randn(1, 17, 24), grid=(4, 4))


def test_a_stated_number_of_prefix_tokens_must_be_the_models() -> None:
    model = vit(attn_layer=VARSAttention.configured(dictionary=StaticDynamic(num_prefix_tokens=0)), img_size=(64, 96))
    with pytest.raises(ValueError, match=r"num_prefix_tokens=0, but the model has 1"):
        model(torch.randn(1, 3, 64, 96))


@pytest.mark.parametrize(("grid", "count"), [((4, 6), 25), ((2, 2), 9), ((2, 4), 9), ((3, 8), 25)])
def test_two_readings_are_an_error(grid: Grid, count: int) -> None:
    layer = VARSAttention(16, 2, dictionary=StaticDynamic(grid=grid))
    with pytest.raises(ValueError, match=rf"{count} tokens may be a grid of .* or of .*num_prefix_tokens="):
        layer(torch.randn(1, count, 16))
    assert static_rows(layer, count, grid) == count - grid[0] * grid[1]


def test_a_grid_that_the_tokens_do_not_fill_is_an_error() -> None:
    layer = VARSAttention(16, 2, dictionary=StaticDynamic(grid=(4, 4)))
    with pytest.raises(ValueError, match=r"16 tokens do not fill the grid \(4, 5\), 20 positions"):
        layer(torch.randn(1, 16, 16), grid=(4, 5))


def test_modules_of_other_kinds_are_left_alone() -> None:
    model = nn.Sequential(VARSAttention(16, 2))
    place_layers(model)
    assert model[0].layout is None
