"""What VARS layers cost beside their own matrix products, and beside fused softmax attention."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor

from vars_ode.attention import VARSAttention
from vars_ode.measuring import check_device, interleaved

LAYERS = {"vars-d": "dynamic", "vars-sd": "static+dynamic"}
TOKENS = (49, 100, 196, 400, 784, 1024, 2025, 4096)
DIM, HEADS, FEATURES = 192, 6, 64


@dataclass(frozen=True)
class LayerRow:
    """Milliseconds of one pass of a layer and of what it is compared with, and their ratios.

    Attributes:
        layer, against, measured: what of what.
        input: images x tokens.
        eager_over_against, compiled_over_against: both eager, and both under torch.compile.
        growth_exponent: the slope of log time over log tokens since the fewest, in the rows by tokens.
    """

    layer: str
    against: str
    measured: str
    input: str
    layer_ms: float
    against_ms: float
    eager_over_against: float
    compiled_over_against: float | None = None
    growth_exponent: float | None = None


def layer(
    repeats: int = 30, tokens: Sequence[int] = TOKENS, device: str = "cpu", compiled: bool = False
) -> list[LayerRow]:
    """VARS-D and VARS-SD, 192 wide, 6 heads, 64 features, five Euler steps, float32, on 8 images of 196 tokens.

    First without gradients over the bare products: those of the projections, features, drive, Gram, five steps and
    read-out, on random tensors of the same shapes. Then forward and backward pass over timm's `Attention`, which is
    fused; and the same by the number of tokens, of two images.

    Args:
        repeats: turns of each row, of which the median is taken; fewer for many tokens.
        tokens: of the last rows, squares.
        device: where.
        compiled: the first rows under torch.compile too, which is given what they are compared with as well.
    """
    where = check_device(device)
    x = torch.randn(8, 196, DIM, generator=torch.Generator().manual_seed(0)).to(where)
    rows = [_over_products(name, x, repeats, compiled) for name in LAYERS]
    rows += [_with_gradients(name, x, repeats, compiled) for name in LAYERS]
    for name in LAYERS:
        by_tokens = {count: _by_tokens(name, count, repeats, where) for count in tokens}
        rows += [_grown(by_tokens, count) for count in by_tokens]
    return rows


def matrix_products(x: Tensor, templates: int, steps: int = 5) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """x -> the products of a layer and nothing else: (output, projected queries), whose values mean nothing.

    Args:
        x: tokens, (batch, tokens, DIM).
        templates: of a head; they are random and given.
        steps: products of Gram and code.
    """
    (batch, tokens, dim), head_dim = x.shape, DIM // HEADS
    qkv, projection, out = x.new_empty(2 * dim, dim), x.new_empty(HEADS, head_dim, FEATURES), x.new_empty(dim, dim)
    phi = x.new_empty(batch, HEADS, tokens, templates)
    for part in (qkv, projection, out, phi):
        part.normal_(std=0.05)

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        q, v = (x @ qkv.T).view(batch, tokens, 2, HEADS, head_dim).permute(2, 0, 3, 1, 4)
        gram, code = phi.mT @ phi, phi.mT @ v
        for _ in range(steps):
            code = gram @ code
        return (phi @ code).transpose(1, 2).reshape(x.shape) @ out.T, q @ projection

    return run


def _layer(name: str, tokens: int, device: torch.device) -> VARSAttention:
    torch.manual_seed(0)
    return VARSAttention(DIM, HEADS, num_features=FEATURES, dictionary=LAYERS[name]).to(device)


@torch.no_grad()
def _over_products(name: str, x: Tensor, repeats: int, compiled: bool) -> LayerRow:
    ours = _layer(name, x.shape[1], x.device)
    products = matrix_products(x, ours.dictionary.num_templates or 0)
    return _row(name, "matrix products", "forward", ours, products, x, repeats, compiled)


def _with_gradients(name: str, x: Tensor, repeats: int, compiled: bool) -> LayerRow:
    ours, fused = _layer(name, x.shape[1], x.device), Attention(DIM, HEADS).to(x.device)
    x = x.clone().requires_grad_()
    return _row(name, "fused softmax", "forward and backward", ours, fused, x, repeats, compiled)


def _by_tokens(name: str, tokens: int, repeats: int, device: torch.device) -> LayerRow:
    x = torch.randn(2, tokens, DIM, generator=torch.Generator().manual_seed(tokens)).to(device)
    return _with_gradients(name, x, max(min(repeats, 5), repeats * 400 // (tokens + 400)), compiled=False)


def _row(
    name: str,
    against: str,
    measured: str,
    ours: VARSAttention,
    other: Callable[[Tensor], Any],
    x: Tensor,
    repeats: int,
    compiled: bool,
) -> LayerRow:
    of = _update if x.requires_grad else _forward
    runs = [partial(of, ours, x), partial(of, other, x)]
    if compiled:
        runs += [partial(of, torch.compile(part, fullgraph=True), x) for part in (ours, other)]
    times = interleaved(runs, x.device, repeats, processor=True)
    ratios = times[0] / times[1], times[2] / times[3] if compiled else None
    return LayerRow(name, against, measured, f"{len(x)} x {x.shape[1]}", times[0], times[1], *ratios)


def _forward(run: Callable[[Tensor], Any], x: Tensor) -> None:
    run(x)


def _update(run: Callable[[Tensor], Any], x: Tensor) -> None:
    run(x).sum().backward()


def _grown(by_tokens: dict[int, LayerRow], tokens: int) -> LayerRow:
    fewest, row = min(by_tokens), by_tokens[tokens]
    if tokens == fewest:
        return row
    slope = math.log(row.layer_ms / by_tokens[fewest].layer_ms) / math.log(tokens / fewest)
    return replace(row, growth_exponent=slope)
