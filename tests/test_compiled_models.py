"""torch.compile of whole models: one graph, none again for other batch sizes, and the numbers of the eager model."""

from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from vars_ode import RobustVisionTransformer

SHAPES: dict[str, Any] = {"img_size": 32, "num_classes": 3}


def robust(attention: str) -> nn.Module:
    shape: dict[str, Any] = {"base_dims": (4,), "depths": (1,), "num_heads": (2,)}
    return RobustVisionTransformer(attention=attention, **shape, **SHAPES, t1=1.0)


def transformer(attention: str) -> nn.Module:
    width: dict[str, Any] = {"patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", attn_layer=attention, **width, **SHAPES)


# Model, backend, and what torch.compile leaves open: all sizes and numbers, with dynamic=True, or the batch alone.
# Backward passes take long to trace, and RVT's twice as long with open sides; the first two leave those open.
CASES = {
    "RVT, vars-s": (lambda: robust("vars-s"), "eager", True),
    "RVT, vars-sd": (lambda: robust("vars-sd"), "eager", True),
    "RVT, vars-d": (lambda: robust("vars-d"), "aot_eager", None),
    "ViT, vars-d": (lambda: transformer("vars-d"), "aot_eager", True),
}


@pytest.mark.parametrize("name", CASES)
def test_one_graph_for_all_batch_sizes(name: str) -> None:
    """Forward and backward, in training mode, where BatchNorm has statistics to keep."""
    torch.compiler.reset()
    torch.manual_seed(0)
    make, backend, dynamic = CASES[name]
    model, counter = make(), CompileCounterWithBackend(backend)
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend=counter)
    counts = []
    for batch in (2, 3):
        images = torch.randn(batch, 3, 32, 32)
        torch._dynamo.mark_dynamic(images, 0)  # an error where the graph is of one batch size
        found, expected = compiled(images), model(images)
        torch.testing.assert_close(found, expected)
        parameters = list(model.parameters())
        ours, theirs = (torch.autograd.grad(output.square().sum(), parameters) for output in (found, expected))
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
        counts.append(counter.frame_count)
    assert counts[0] == counts[1]


def test_a_fused_model_compiles() -> None:
    torch.compiler.reset()
    model = robust("vars-d").fuse()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        images = torch.randn(2, 3, 32, 32)
        torch.testing.assert_close(compiled(images), model(images))
