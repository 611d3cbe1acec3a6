"""Optimised paths beside plain references of the same formulas: values and gradients agree to rounding."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vars_ode
from vars_ode import RobustVisionTransformer
from vars_ode.dictionaries import Dynamic, Shape, StaticDynamic
from vars_ode.dictionaries.random_features import log_features, unit_columns
from vars_ode.fields import ProximalFlow, ReconstructionArgs, soft_threshold
from vars_ode.folding import fold_before, fold_behind
from vars_ode.models.blocks import GELU, ConvMlp, ConvStem, TokenBatchNorm

GRID = (4, 3)
ATTENTIONS = ("softmax", "performer", "vars-s", "vars-d", "vars-sd")


def gradients(output: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    return torch.autograd.grad((output * weights).sum(), inputs, retain_graph=True)


def agree(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], tolerance: float = 1e-10) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def plain_mlp(mlp: Any, x: Tensor) -> Tensor:
    """By torch's convolutions of maps with channels first."""
    maps = x.mT.unflatten(-1, GRID).contiguous()
    maps = F.gelu(mlp.bn1(mlp.fc1(maps)))
    maps = F.gelu(mlp.bn2(mlp.dwconv(maps)))
    return mlp.bn3(mlp.fc2(maps)).flatten(2).mT


def plain_stem(stem: Any, x: Tensor) -> Tensor:
    return stem.conv2(stem.pool(stem.norm(stem.conv1(x.contiguous()))))


def plain_norm(norm: Any, x: Tensor) -> Tensor:
    return norm.bn(x.mT.contiguous()).mT


PARTS: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor], tuple[int, ...]]] = {
    "ConvMlp": (lambda: ConvMlp(6, 10), plain_mlp, (2, 12, 6)),
    "ConvStem": (lambda: ConvStem(3, 8, width=5, patch_size=8), plain_stem, (2, 3, 32, 27)),
    "TokenBatchNorm": (lambda: TokenBatchNorm(6), plain_norm, (2, 12, 6)),
}


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("name", PARTS)
def test_parts_of_a_robust_transformer(name: str, training: bool) -> None:
    make, plain, shape = PARTS[name]
    ours = make().double()
    ours(torch.randn(shape, dtype=torch.float64), *([GRID] if name == "ConvMlp" else []))  # other statistics than new
    ours.train(training)
    theirs = copy.deepcopy(ours)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    found, expected = ours(x, *([GRID] if name == "ConvMlp" else [])), plain(theirs, x)
    agree((found,), (expected,))
    agree(gradients(found, x, *ours.parameters()), gradients(expected, x, *theirs.parameters()))
    agree(tuple(ours.buffers()), tuple(theirs.buffers()))
    with torch.no_grad():
        agree((ours(x, *([GRID] if name == "ConvMlp" else [])),), (plain(theirs, x),))


def test_gelu_in_place_is_gelu() -> None:
    x = torch.randn(50, dtype=torch.float64)
    recorded = GELU()(x.requires_grad_())
    expected = F.gelu(x.detach())
    with torch.no_grad():
        assert torch.equal(recorded, expected)
        assert torch.equal(GELU()(x.detach().clone()), expected)


def plain_problem(templates: Any, q: Tensor, v: Tensor, static: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(drive, Gram, templates) with every column divided by its norm, and all templates side by side."""
    dynamic = templates.dynamic if static else templates
    normal = F.normalize(q, dim=-1) if dynamic.normalize_queries else q * q.shape[-1] ** -0.25
    logs = normal @ dynamic.projection - 0.5 * normal.square().sum(-1, keepdim=True)
    phi, _ = unit_columns(logs, None)
    if static:
        learned = F.normalize(F.pad(templates.static, (0, 0, 1, 0)), dim=-2)
        phi = torch.cat([phi, learned.expand(len(q), -1, -1, -1)], -1)
    return phi.mT @ v, phi.mT @ phi, phi


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static+dynamic"])
def test_problems_whose_templates_are_not_divided(static: bool, normalize: bool) -> None:
    choice = StaticDynamic(grid=GRID, num_prefix_tokens=1) if static else Dynamic()
    templates: Any = choice.build(Shape(2, 4, 5, normalize), dtype=torch.float64)
    q, v = torch.randn(2, 3, 2, 13, 4, dtype=torch.float64).requires_grad_().unbind()
    code = torch.randn(3, 2, templates.num_templates, 4, dtype=torch.float64)
    problem = templates(q, q, v)
    drive, gram, phi = plain_problem(templates, q, v, static)
    agree((problem.drive, problem.gram, problem.read_out.templates), (drive, gram, phi))
    agree((problem.read_out(code),), (phi @ code,))
    every = (q, v, *templates.parameters())
    without_values = (q, *templates.parameters())
    agree(gradients(problem.drive, *every), gradients(drive, *every))
    agree(gradients(problem.gram, *without_values), gradients(gram, *without_values))
    agree(gradients(problem.read_out(code), *without_values), gradients(phi @ code, *without_values))


def test_features_of_a_query_that_is_zero() -> None:
    q, projection = torch.randn(1, 2, 3, 4), torch.randn(2, 4, 5)
    q[:, :, 0] = 0
    unit = F.normalize(q, dim=-1)
    expected = unit @ projection - 0.5 * unit.square().sum(-1, keepdim=True)
    torch.testing.assert_close(log_features(q, projection, True), expected)
    assert (log_features(q, projection, True)[:, :, 0] == 0).all()


def test_steps_with_and_without_gradients() -> None:
    drive, code = torch.randn(2, 3, 2, 5, 4, dtype=torch.float64).unbind()
    gram = torch.randn(3, 2, 5, 5, dtype=torch.float64)
    rate, sparsity = torch.rand(3, 2, 1, 1, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    args = ReconstructionArgs(drive, gram, rate, sparsity)
    expected = soft(code - rate * (gram @ code - drive), rate * sparsity)
    recorded = ProximalFlow().iterate(code, args)
    with torch.no_grad():
        agree((recorded, ProximalFlow().iterate(code, args)), (expected, expected))


def soft(x: Tensor, threshold: Tensor) -> Tensor:
    return x.sign() * (x.abs() - threshold).clamp_min(0)


def test_thresholds_that_broadcast_beyond_their_argument() -> None:
    x, threshold = torch.randn(5), torch.rand(3, 1)
    with torch.no_grad():
        torch.testing.assert_close(soft_threshold(x, threshold), soft(x, threshold))


def small(attention: str) -> RobustVisionTransformer:
    model = RobustVisionTransformer(64, (8, 8), (1, 1), (2, 4), 2.0, 5, attention=attention).double()
    model(3 * torch.randn(8, 3, 64, 64, dtype=torch.float64) + 1)  # statistics of BatchNorm
    return model


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_fused_model_gives_the_same_logits(attention: str) -> None:
    model, images = small(attention), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    before = copy.deepcopy(model.state_dict())
    fused = model.fuse()
    assert not fused.training
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [name for name in fused.state_dict() if "running" in name] == []
    model.eval()
    agree((fused(images), fused.fuse()(images)), (model(images), model(images)))


def test_a_fused_model_is_not_saved_as_the_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be described"):
        vars_ode.save_pretrained(small("softmax").fuse(), tmp_path / "fused")


@pytest.mark.parametrize("bias", [False, True])
def test_folding_on_both_sides_of_a_norm(bias: bool) -> None:
    first, last = nn.Linear(4, 6, bias=bias).double(), nn.Linear(6, 3, bias=bias).double()
    norm = nn.BatchNorm1d(6, affine=bias).double()
    norm(5 * torch.randn(30, 6, dtype=torch.float64) + 2)
    norm.eval()
    x = torch.randn(7, 4, dtype=torch.float64)
    expected = last(norm(first(x)))
    behind, before = copy.deepcopy(first), copy.deepcopy(last)
    fold_behind(behind, norm)
    fold_before(norm, before)
    agree((last(behind(x)), before(first(x))), (expected, expected))


def test_a_norm_without_statistics_is_not_folded() -> None:
    with pytest.raises(ValueError, match="statistics from every batch"):
        fold_behind(nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False))
    layer_norm = nn.LayerNorm(6)
    assert fold_behind(nn.Linear(4, 6), layer_norm) is layer_norm
