"""VARS attention inside timm's vision transformers."""

import pickle

import pytest
import timm
import torch
from core_cases import DIM, HEADS, TOKENS, tokens
from timm.layers import Attention
from timm.models.vision_transformer import ATTN_LAYERS
from torch import nn

from vars_ode import Softmax, StaticDynamic, VARSAttention, attention_layer, available_attentions

SOFTMAX_LIMIT = VARSAttention.configured(dictionary="softmax", sparsity=0.0, rate=1.0, initial="zero", t1=1.0)
SMALL = {"img_size": 32, "num_classes": 10, "depth": 3}
NORM = {"norm_layer": nn.LayerNorm}


def images(batch=2, size=32):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(7))


def vit(attn_layer, **options):
    return timm.create_model("vit_tiny_patch16_224", attn_layer=attn_layer, **{**SMALL, **options}).eval()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"qk_norm": True},
        {"scale_attn_norm": True, "qk_norm": True},
        {"qkv_bias": False},
        {"reg_tokens": 3},
        {"class_token": False, "global_pool": "avg"},
    ],
    ids=str,
)
def test_a_vit_in_the_single_step_limit_has_the_logits_of_the_original(options):
    original = vit("attn", **options)
    ours = vit(SOFTMAX_LIMIT, **options)
    ours.load_state_dict(original.state_dict(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(ours(images()), original(images()), rtol=0, atol=1e-5)
        torch.testing.assert_close(
            ours.double()(images().double()), original.double()(images().double()), atol=1e-12, rtol=0
        )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"qkv_bias": True},
        {"qk_norm": True, **NORM},
        {"scale_norm": True, **NORM},
        {"gated": True, "qkv_bias": True},
        {"gated": True, "scale_norm": True, "qk_norm": True, **NORM},
        {"attn_head_dim": 5, "dim_out": 7},
        {"proj_bias": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("mask", [None, "keys", "causal"])
def test_every_option_of_timms_attention_means_the_same(options, mask):
    original = Attention(DIM, HEADS, dtype=torch.float64, **options)
    ours = SOFTMAX_LIMIT(DIM, HEADS, dtype=torch.float64, **options)
    ours.load_state_dict(original.state_dict(), strict=True)
    masks = {None: {}, "keys": {"attn_mask": torch.rand(2, 1, 1, TOKENS) > 0.3}, "causal": {"is_causal": True}}[mask]
    x = tokens(dtype=torch.float64)
    torch.testing.assert_close(ours(x, **masks), original(x, **masks), rtol=0, atol=1e-12)


def test_training_a_converted_vit_follows_the_original():
    original, ours = vit("attn"), vit(SOFTMAX_LIMIT)
    ours.load_state_dict(original.state_dict())
    gradients = []
    for model in (original, ours):
        model(images()).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", [name for name in available_attentions() if name.startswith("vars-") and name != "vars-s"]
)
def test_by_name(name):
    assert ATTN_LAYERS[name].options == ATTN_LAYERS[name.replace("-", "_")].options == attention_layer(name).options
    model = vit(name.replace("-", "_"))
    assert all(isinstance(block.attn, VARSAttention) for block in model.blocks)
    model(images()).sum().backward()
    silent = [key for key, p in model.named_parameters() if p.grad is None]
    assert silent == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_layers_get_what_the_model_knows():
    model = vit(VARSAttention.configured(dictionary="dynamic", num_features=6), qk_norm=True, attn_drop_rate=0.1)
    layer = model.blocks[0].attn
    assert (layer.num_heads, layer.head_dim, layer.attn_drop.p) == (3, 64, 0.1)
    assert isinstance(layer.q_norm, nn.LayerNorm)


@pytest.mark.parametrize("registers", [0, 4])
def test_static_templates_behind_class_and_register_tokens_and_at_another_resolution(registers):
    choice = StaticDynamic(grid=(2, 2), num_prefix_tokens=1 + registers)
    model = vit(VARSAttention.configured(dictionary=choice), reg_tokens=registers, dynamic_img_size=True)
    for size in (32, 64, 48):
        assert model(images(size=size)).shape == (2, 10)


def test_static_templates_on_grids_that_are_not_square():
    choice = StaticDynamic(grid=(2, 3), num_prefix_tokens=1)
    model = vit(VARSAttention.configured(dictionary=choice), img_size=(32, 48))
    assert model(torch.randn(1, 3, 32, 48)).shape == (1, 10)


def test_models_are_pickled_and_reloaded():
    model = vit(VARSAttention.configured(dictionary=Softmax(), solver="rk4", t1=2.0), depth=1)
    copied = pickle.loads(pickle.dumps(model))
    assert torch.equal(copied(images()), model(images()))


def test_solver_of_a_trained_model_is_swapped_in_place():
    model = vit("vars_softmax", depth=1)
    with torch.no_grad():
        before = model(images())
        saved = {key: value.clone() for key, value in model.state_dict().items()}
        model.blocks[0].attn.solver = "nesterov"
        assert not torch.allclose(model(images()), before)
    assert all(torch.equal(saved[key], value) for key, value in model.state_dict().items())


def test_a_causal_mask_through_the_model_is_refused_with_advice():
    model = vit("vars_d", depth=1)
    with pytest.raises(ValueError, match="Mask keys instead"):
        model.blocks[0](torch.randn(1, 5, 192), is_causal=True)
