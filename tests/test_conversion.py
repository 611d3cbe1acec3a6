"""`convert_attention`: which layers become VARS layers, what stays as it was, and what is left alone."""

import copy
import inspect
import pickle
from types import ModuleType
from typing import Any

import pytest
import timm
import timm.layers
import timm.models
import torch
from conversion_cases import CASES, Case, randomized, relative_difference
from timm.layers import Attention, AttentionRope, RotaryEmbeddingCat
from timm.models.eva import EvaAttention
from torch import Tensor, nn

import vars_ode
from vars_ode import VARSAttention, VARSRotaryAttention, convert_attention, set_solver
from vars_ode.conversion.contracts import is_convertible, vars_layer
from vars_ode.conversion.reasons import OTHERS, REASONS
from vars_ode.models import vars_layers

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12}


def small(**options: Any) -> nn.Module:
    case = CASES["vit"]
    return Case("vit_tiny_patch16_224", {**case.options, **options}).build()


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_a_converted_model_has_the_outputs_of_the_original(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    model, images = case.build(dtype), case.images(dtype=dtype)
    reference, keys, parameters = model(images), list(model.state_dict()), dict(model.named_parameters())
    report = convert_attention(model)
    assert report.lossless
    assert len(report.converted) == len(vars_layers(model)) > 0
    assert len(report.left_alone) == case.left_alone
    assert relative_difference(model(images), reference) <= TOLERANCES[dtype]
    set_solver(model, sparsity=0.01)  # the layers are in use, and the comparison is finer than such a change
    assert relative_difference(model(images), reference) > 10 * TOLERANCES[dtype]
    assert list(model.state_dict()) == keys
    assert all(parameter is parameters[key] for key, parameter in model.named_parameters())


LAYER_OPTIONS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "plain": (Attention, {"qkv_bias": True}),
    "plain, all": (Attention, {"qk_norm": True, "scale_norm": True, "gated": True, "attn_head_dim": 6, "dim_out": 12}),
    "rotary": (AttentionRope, {}),
    "rotary, half": (AttentionRope, {"rotate_half": True, "num_prefix_tokens": 3, "qkv_bias": False}),
    "rotary, all": (AttentionRope, {"qk_norm": True, "scale_norm": True, "gated": True, "dim_out": 12}),
    "rotary, wide heads": (AttentionRope, {"attn_head_dim": 12}),
    "rotary, separate": (AttentionRope, {"qkv_fused": False, "proj_bias": False}),
    "rotary, grouped": (AttentionRope, {"qkv_fused": False, "num_kv_heads": 2, "qk_norm": True}),
    "eva": (EvaAttention, {}),
    "eva, bias added later": (EvaAttention, {"qkv_bias_separate": True, "qk_norm": True}),
    "eva, no bias": (EvaAttention, {"qkv_bias": False, "scale_norm": False}),
    "eva, separate": (EvaAttention, {"qkv_fused": False, "rotate_half": True, "gated": True}),
    "eva, no prefix": (EvaAttention, {"num_prefix_tokens": 0}),
}
DIM, HEADS, GRID = 32, 4, (3, 4)


def original_layer(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    kind, options = LAYER_OPTIONS[name]
    layer = kind(DIM, HEADS, norm_layer=nn.LayerNorm, dtype=dtype, **options)
    return randomized(layer).eval()


def layer_call(layer: nn.Module, mask: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, dict[str, Any]]:
    """Tokens for a layer, and the other arguments of its call."""
    prefix = getattr(layer, "num_prefix_tokens", 2)
    tokens = prefix + GRID[0] * GRID[1]
    x = torch.randn(2, tokens, DIM, dtype=dtype)
    masks: dict[str, dict[str, Any]] = {
        "no mask": {},
        "keys": {"attn_mask": torch.rand(2, 1, 1, tokens) > 0.3},
        "pairs": {"attn_mask": torch.rand(2, 1, tokens, tokens) > 0.3},
        "added": {"attn_mask": torch.randn(2, HEADS, tokens, tokens, dtype=dtype)},
        "causal": {"is_causal": True},
    }
    call = masks[mask]
    if hasattr(layer, "num_prefix_tokens"):
        call["rope"] = RotaryEmbeddingCat(layer.head_dim, feat_shape=GRID, in_pixels=False).get_embed().to(dtype)
    return x, call


@pytest.mark.parametrize("mask", ["no mask", "keys", "pairs", "added", "causal"])
@pytest.mark.parametrize("name", LAYER_OPTIONS)
@torch.no_grad()
def test_every_option_and_every_mask_of_timms_layers(name: str, mask: str) -> None:
    original = original_layer(name)
    x, call = layer_call(original, mask)
    expected = original(x, **call)
    model = nn.Sequential(original)
    convert_attention(model)
    assert isinstance(model[0], VARSAttention)
    assert relative_difference(model[0](x, **call), expected) <= 1e-12


@pytest.mark.parametrize("key_mask", [False, True])
@torch.no_grad()
def test_images_of_different_sizes_in_a_batch_stay_apart(key_mask: bool) -> None:
    """A NaFlexVit masks the patches that fill up the smaller image."""
    options = {**CASES["naflexvit"].options, "use_key_only_attn_mask": key_mask}
    model = Case("naflexvit_base_patch16_gap", options).build(torch.float64)
    places = torch.stack(torch.meshgrid(torch.arange(3), torch.arange(4), indexing="ij"), -1).reshape(1, 12, 2)
    valid = torch.ones(2, 12, dtype=torch.bool)
    valid[1, 6:] = False
    patches = torch.randn(2, 12, 16 * 16 * 3, dtype=torch.float64)
    batch = {"patches": patches, "patch_coord": places.repeat(2, 1, 1), "patch_valid": valid}
    expected = model(batch)
    assert convert_attention(model).lossless
    assert relative_difference(model(batch), expected) <= 1e-12
    batch["patches"] = torch.where(valid[..., None], patches, 7.0)
    torch.testing.assert_close(model(batch)[1], expected[1])
    set_solver(model, t1=2.0, sparsity=0.01)
    if key_mask:
        assert not torch.allclose(model(batch), expected)
    else:  # rows of queries that are padding see nothing, so this mask differs between queries
        with pytest.raises(ValueError, match="differs between queries"):
            model(batch)


@pytest.mark.parametrize("name", ["rotary", "rotary, grouped", "eva", "plain"])
@torch.no_grad()
def test_the_solver_agrees_with_the_step_that_needs_no_gram(name: str) -> None:
    original = original_layer(name)
    x, call = layer_call(original, "keys")
    layer = vars_layer(original, {"dictionary": "softmax", **vars_ode.conversion.SINGLE_STEP})
    assert layer.code_is_drive()
    quick = layer(x, **call)
    layer.sparsity = 1e-300  # a threshold that changes nothing, but is one
    assert not layer.code_is_drive()
    torch.testing.assert_close(layer(x, **call), quick, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_rotation_reaches_problem_solve_and_map() -> None:
    layer = vars_layer(original_layer("eva"), {"dictionary": "softmax", **vars_ode.conversion.SINGLE_STEP})
    x, call = layer_call(layer, "no mask")
    assert isinstance(layer, VARSRotaryAttention)
    rotated, straight = layer.problem(x, **call)[0].dense_gram, layer.problem(x)[0].dense_gram
    assert not torch.allclose(rotated, straight)
    values = layer.queries_keys_values(x)[2]
    output = (layer.attention_map(x, **call) @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(layer.proj(layer.norm(output)), layer(x, **call))


def test_set_solver_turns_on_recurrence_in_chosen_layers() -> None:
    model, case = small(), CASES["vit"]
    with torch.no_grad():
        reference = model(case.images())
        convert_attention(model)
        assert set_solver(model, "rk4", t1=3.0, sparsity=0.05, match="blocks.1.*") == ["blocks.1.attn"]
        assert model.blocks[0].attn.code_is_drive()
        changed = model(case.images())
        assert changed.isfinite().all()
        assert not torch.allclose(changed, reference, rtol=1e-3)


def test_training_goes_on_as_the_original_would() -> None:
    original, case = small(attn_drop_rate=0.2, drop_path_rate=0.1).train(), CASES["vit"]
    converted = copy.deepcopy(original)
    optimizer = torch.optim.SGD(converted.parameters(), lr=0.1)
    convert_attention(converted)
    updated = []
    for model in (original, converted):
        torch.manual_seed(3)  # of dropout
        model(case.images()).square().mean().backward()
        updated.append({name: parameter.grad for name, parameter in model.named_parameters()})
    torch.testing.assert_close(updated[1], updated[0], rtol=1e-5, atol=1e-6)
    before = converted.blocks[0].attn.qkv.weight.detach().clone()
    optimizer.step()  # made before the conversion, it still has the model's parameters
    assert not torch.equal(converted.blocks[0].attn.qkv.weight, before)


def test_modes_devices_and_frozen_weights_stay() -> None:
    model = small().train()
    model.blocks[0].attn.eval()
    model.blocks[0].attn.qkv.weight.requires_grad_(False)
    modes = {name: module.training for name, module in model.named_modules()}
    convert_attention(model)
    assert all(modes[name] == module.training for name, module in model.named_modules() if name in modes)
    assert not model.blocks[0].attn.qkv.weight.requires_grad
    with torch.device("meta"):
        on_meta = timm.create_model("vit_tiny_patch16_224", depth=1)
    assert convert_attention(on_meta).lossless
    assert all(parameter.is_meta for parameter in on_meta.parameters())


def test_match_and_the_report() -> None:
    model = small()
    report = convert_attention(model, match="blocks.0.*", sparsity=0.1, t1=4.0)
    assert report.converted == ("blocks.0.attn",)
    assert report.left_alone == {"blocks.1.attn": "its name does not match 'blocks.0.*'"}
    assert not report.lossless
    assert (model.blocks[0].attn.sparsity, model.blocks[0].attn.t1) == (0.1, 4.0)
    assert "the outputs of the model change" in str(report)
    second = convert_attention(model)
    assert second.converted == ("blocks.1.attn",)
    assert "set_solver" in second.left_alone["blocks.0.attn"]
    assert "blocks.0.attn" in str(second)
    assert "stay as they were" in str(second)


def test_a_module_with_two_names_is_one_layer() -> None:
    model = small()
    model.blocks[1].attn = model.blocks[0].attn
    convert_attention(model)
    assert model.blocks[1].attn is model.blocks[0].attn
    assert isinstance(model.blocks[0].attn, VARSAttention)


class Whispering(Attention):
    """A subclass may compute something else."""


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (lambda: timm.create_model("resnet18"), {}, "there is no attention layer in this ResNet"),
        (lambda: timm.create_model("vit_base_patch16_xp_224", depth=1), {}, "the block computes its attention itself"),
        (lambda: timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1)), {}, "layers.1.blocks.0.attn: it at"),
        (lambda: nn.Sequential(nn.MultiheadAttention(8, 2)), {}, "a MultiheadAttention, whose computation is not know"),
        (lambda: nn.Sequential(Whispering(8)), {}, "it is a Whispering"),
        (lambda: Attention(8), {}, "give the model around it"),
        (small, {"attention": "performer"}, "convert_attention takes vars-d, vars-sd, vars-softmax"),
        (small, {"attention": "vars-s"}, "convert_attention takes"),
        (small, {"attention": "vars-softmx"}, "did you mean 'vars-softmax'"),
        (small, {"match": "layers.*"}, "matches 'layers.*'; they are blocks.0.attn, blocks.1.attn"),
        (small, {"steps": 3}, "has no option 'steps'"),
        (small, {"num_features": 8}, "one template per token"),
        (small, {"t1": -1.0}, "t1, the horizon"),
    ],
)
def test_what_cannot_be_converted_is_an_error_that_changes_nothing(
    model: Any, arguments: dict[str, Any], message: str
) -> None:
    model = model()
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(ValueError) as caught:
        convert_attention(model, **arguments)
    assert message in str(caught.value)
    assert [type(module) for module in model.modules()] == kinds


def _classes(package: ModuleType) -> dict[str, type]:
    found = {}
    for module in vars(package).values():
        if inspect.ismodule(module):
            found |= {
                f"{kind.__module__}.{kind.__qualname__}": kind
                for kind in vars(module).values()
                if isinstance(kind, type)
            }
    return found


def test_every_attention_of_timm_is_convertible_or_has_a_reason() -> None:
    known = _classes(timm.layers) | _classes(timm.models)
    layers = {name: kind for name, kind in known.items() if name.startswith("timm.") and issubclass(kind, nn.Module)}
    attentions = {name for name in layers if name.lower().endswith(("attention", "attn"))}
    convertible = {name for name, kind in layers.items() if is_convertible(kind.__new__(kind))}
    others = {name for name in attentions if name.rpartition(".")[2] in OTHERS}
    assert attentions <= REASONS.keys() | convertible | others
    assert not REASONS.keys() & (convertible | others)
    assert REASONS.keys() <= layers.keys()  # none that timm does not have


def test_converted_models_are_copied_and_pickled() -> None:
    for name in ("vit", "eva02"):
        model, images = CASES[name].build(), CASES[name].images()
        convert_attention(model, sparsity=0.02)
        with torch.no_grad():
            for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
                assert torch.equal(copied(images), model(images))
