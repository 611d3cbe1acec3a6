"""torch.compile over batch sizes and numbers of tokens: the same numbers, one compilation per number of tokens."""

from collections.abc import Callable, Sequence

import pytest
import timm
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from vars_ode import StaticDynamic, VARSAttention, VARSConvAttention


def tokens(*counts: int) -> list[list[Tensor]]:
    return [[torch.randn(batch, count, 8) for batch in (2, 3, 5)] for count in counts]


def images(*sides: int) -> list[list[Tensor]]:
    return [[torch.randn(batch, 1, side, 16) for batch in (2, 3, 5)] for side in sides]


def transformer(attention: str, **options: object) -> nn.Module:
    shape = {"img_size": 16, "patch_size": 8, "in_chans": 1, "embed_dim": 8, "depth": 1, "num_heads": 1}
    return timm.create_model("vit_tiny_patch16_224", attn_layer=attention, num_classes=2, **shape, **options).eval()


def agree(compiled: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor) -> None:
    """Forward and backward."""
    x = x.clone().requires_grad_()
    found, expected = compiled(x), model(x)
    torch.testing.assert_close(found, expected)
    inputs = [x, *model.parameters()]
    ours, theirs = (torch.autograd.grad(output.square().sum(), inputs) for output in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


STATIC = StaticDynamic(grid=(3, 3))
CASES: dict[str, tuple[Callable[[], nn.Module], list[list[Tensor]]]] = {
    "static+dynamic": (lambda: VARSAttention(8, 1, dictionary=STATIC, t1=1.0), tokens(10, 17)),
    "convolutional": (lambda: VARSConvAttention(8, grid=(3, 3), t1=1.0), tokens(9, 16)),
    "transformer": (lambda: transformer("vars_sd"), images(16)),
    "transformer of any size": (lambda: transformer("vars_sd", dynamic_img_size=True), images(16, 24)),
}


def compilations(model: nn.Module, inputs: Sequence[Sequence[Tensor]], backend: str, dynamic: bool | None) -> list[int]:
    """How many there were after each number of tokens, over all sizes of the batch."""
    torch.compiler.reset()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=dynamic)
    counts = []
    for batches in inputs:
        for x in batches:
            agree(compiled, model, x)
        counts.append(counter.frame_count)
    return counts


@pytest.mark.parametrize("name", CASES)
def test_dynamic_compiles_once_for_all_batch_sizes(name: str) -> None:
    make, inputs = CASES[name]
    counts = compilations(make(), inputs, "eager", dynamic=True)
    assert counts == list(range(1, len(inputs) + 1))


@pytest.mark.parametrize("dictionary", ["static+dynamic", "softmax"])
def test_dropout_compiles_with_open_sizes(dictionary: str) -> None:
    """In training mode, where dynamic=True leaves its probability open too."""
    torch.compiler.reset()
    layer = VARSAttention(8, 1, dictionary=dictionary, attn_drop=0.5, t1=1.0)
    compiled = torch.compile(layer, fullgraph=True, backend="eager", dynamic=True)
    for x in tokens(10)[0]:
        torch.manual_seed(1)
        expected = layer(x)
        torch.manual_seed(1)
        torch.testing.assert_close(compiled(x), expected)


def test_the_number_of_tokens_may_change() -> None:
    make, inputs = CASES["static+dynamic"]
    counts = compilations(make(), [batches[:2] for batches in inputs], "aot_eager", dynamic=None)
    assert counts[0] <= 2, "one recompilation at most, for batch sizes that vary"
    assert counts[1] <= counts[0] + 2
