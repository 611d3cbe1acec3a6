"""A converted model is still a model of timm's: its methods, and what torch makes of it: graphs, exports, processes."""

import copy
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conversion_cases import CASES, relative_difference
from timm.models import create_feature_extractor
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.nn.parallel import DistributedDataParallel
from workers import forkserver

import vars_ode
from vars_ode import VARSAttention, convert_attention, set_solver

SOLVED = {"t1": 2.0, "sparsity": 0.02}
FAMILIES = ["vit", "eva02", "vit, rotary"]


def pair(name: str, depth: int = 2, **options: Any) -> tuple[nn.Module, nn.Module, Tensor]:
    """(original, converted, images); one block is enough where a graph is made of every operation."""
    original = replace(CASES[name], options={**CASES[name].options, "depth": depth}).build()
    converted = copy.deepcopy(original)
    convert_attention(converted, **options)
    return original, converted, CASES[name].images()


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_state_dicts_go_both_ways(name: str) -> None:
    original, converted, images = pair(name)
    other = CASES[name].build()
    for parameter in other.parameters():
        parameter.zero_()
    other.load_state_dict(converted.state_dict(), strict=True)
    assert torch.equal(other(images), original(images))
    convert_attention(other)
    other.load_state_dict(original.state_dict(), strict=True)
    torch.testing.assert_close(other(images), original(images))


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_intermediate_features(name: str) -> None:
    original, converted, images = pair(name)
    expected, got = (model.forward_intermediates(images, indices=[0, 1], norm=True) for model in (original, converted))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    if hasattr(original, "get_intermediate_layers"):
        expected, got = (model.get_intermediate_layers(images, n=2, reshape=True) for model in (original, converted))
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    set_solver(converted, **SOLVED)
    changed = converted.forward_intermediates(images, indices=[1], intermediates_only=True)
    assert changed[0].shape == original.forward_intermediates(images, indices=[1], intermediates_only=True)[0].shape


@torch.no_grad()
def test_features_only_and_graphs_of_torch_fx() -> None:
    options: dict[str, Any] = {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3}
    torch.manual_seed(0)
    features = timm.create_model("vit_tiny_patch16_224", features_only=True, out_indices=(0, 1), **options).eval()
    images = CASES["vit"].images()
    expected = features(images)
    assert len(convert_attention(features).converted) == 2
    torch.testing.assert_close(features(images), expected)
    for name in ("vit", "eva02"):
        _, converted, images = pair(name)
        set_solver(converted, **SOLVED)
        graph = create_feature_extractor(converted, {"blocks.0": "0", "blocks.1": "1"})
        kept = converted.forward_intermediates(images, indices=[0, 1], intermediates_only=True, output_fmt="NLC")
        for feature, tokens in zip(graph(images).values(), kept, strict=True):
            torch.testing.assert_close(feature[:, -tokens.shape[1] :], tokens)


def test_gradient_checkpointing_has_the_same_gradients() -> None:
    for name in FAMILIES:
        _, converted, images = pair(name, **SOLVED)
        gradients = []
        for enable in (False, True):
            converted.set_grad_checkpointing(enable)
            converted.zero_grad()
            converted.train()(images).square().mean().backward()
            gradients.append({key: parameter.grad.clone() for key, parameter in converted.named_parameters()})
        torch.testing.assert_close(gradients[1], gradients[0])


@torch.no_grad()
def test_other_resolutions() -> None:
    options: dict[str, Any] = {"img_size": 32, "depth": 2, "dynamic_img_size": True, "num_classes": 10}
    for name in ("vit_tiny_patch16_224", "eva02_tiny_patch14_224"):
        original = timm.create_model(name, **{**options, "img_size": 32 if "patch16" in name else 28}).eval()
        for attention in ("vars-softmax", "vars-sd"):
            converted = copy.deepcopy(original)
            convert_attention(converted, attention)
            for side in (3, 4):
                size = side * (16 if "patch16" in name else 14)
                images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
                if attention == "vars-softmax":
                    torch.testing.assert_close(converted(images), original(images))
                assert converted(images).isfinite().all()


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_bf16_autocast_is_near_float32(name: str) -> None:
    original, converted, images = pair(name)
    with torch.autocast("cpu", torch.bfloat16):
        assert relative_difference(converted(images).float(), original(images).float()) <= 0.05
    set_solver(converted, **SOLVED)
    expected = converted(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert relative_difference(converted(images).float(), expected) <= 0.1


@pytest.mark.parametrize(
    ("name", "solver"), [("vit", {}), ("vit", {"solver": "rk4", **SOLVED}), ("eva02", {}), ("eva02", SOLVED)], ids=str
)
def test_torch_compile_makes_one_graph(name: str, solver: dict[str, Any]) -> None:
    _, converted, images = pair(name, depth=1, **solver)
    expected = converted(images)
    torch.compiler.reset()
    counter = CompileCounter()
    compiled = torch.compile(converted, backend=counter, fullgraph=True)
    torch.testing.assert_close(compiled(images), expected)
    compiled(images + 1)
    assert counter.frame_count == 1
    torch.compiler.reset()


@pytest.mark.parametrize(("name", "solver"), [("vit", {}), ("eva02", SOLVED)], ids=str)
@torch.no_grad()
def test_export_with_a_dynamic_batch(name: str, solver: dict[str, Any]) -> None:
    _, converted, images = pair(name, depth=1, **solver)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(converted, (images,), dynamic_shapes=({0: batch},))
    stream = io.BytesIO()
    torch.export.save(program, stream)
    stream.seek(0)
    module = torch.export.load(stream).module()
    for count in (1, 5):
        more = torch.cat([images] * count)[:count]
        torch.testing.assert_close(module(more), converted(more), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_onnx_with_a_dynamic_batch(tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    _, converted, images = pair("eva02", depth=1, **SOLVED)
    batch = torch.export.Dim("batch", min=1, max=64)
    path = tmp_path / "model.onnx"
    torch.onnx.export(converted, (images,), path, dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 5):
        more = torch.cat([images] * count)[:count]
        (found,) = session.run(None, {session.get_inputs()[0].name: more.numpy()})
        assert relative_difference(torch.from_numpy(found), converted(more)) <= 1e-4


def _gradients(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    _, converted, _ = pair("vit", **SOLVED)
    model = DistributedDataParallel(converted)
    model(CASES["vit"].images(4).chunk(world)[rank]).square().mean().backward()
    torch.save([parameter.grad for parameter in converted.parameters()], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    forkserver()  # loads the libraries once
    mp.start_processes(_gradients, (2, str(tmp_path)), nprocs=2, start_method="forkserver")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    _, converted, _ = pair("vit", **SOLVED)
    converted(CASES["vit"].images(4)).square().mean().backward()
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    torch.testing.assert_close(first, [parameter.grad for parameter in converted.parameters()], rtol=1e-4, atol=1e-6)


def test_a_wrapped_model_is_converted_inside() -> None:
    model = CASES["vit"].build()
    assert vars_ode.convert_attention(torch.compile(model)).converted == ("blocks.0.attn", "blocks.1.attn")
    assert all(isinstance(block.attn, VARSAttention) for block in model.blocks)
