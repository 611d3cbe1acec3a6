"""`iterate` and `iteration` of both fields: y + f(y), for every threshold and every form of the Gram."""

from typing import Any

import pytest
import torch
from torch import Tensor

import solvers
from vars_ode import VARSAttention, VARSConvAttention
from vars_ode.fields import LCA, ProximalFlow, ReconstructionArgs
from vars_ode.grams import shifted

F64 = torch.float64
FIELDS = [dynamics(threshold) for dynamics in (ProximalFlow, LCA) for threshold in ("soft", "gelu")]
GRAMS = ("plain", "factor", "coupling", "monotone", "dictionary", "convolution", "shared")
each_field = pytest.mark.parametrize("field", FIELDS, ids=repr)
each_gram = pytest.mark.parametrize("gram", GRAMS)
each_ridge = pytest.mark.parametrize("ridge", [0.0, 0.2])


class Valued:
    """A field by its value alone, with what solvers ask for beside it."""

    natural_step = 1.0

    def __init__(self, field: Any) -> None:
        self.field = field

    def __call__(self, t: Any, y: Tensor, args: Any) -> Tensor:
        field, a = self.field, self.field.code(y, args)
        if isinstance(field, LCA):
            return -y + a + args.rate * (args.drive - args.gram @ a)
        moved = y - args.rate * (args.gram @ y - args.drive)
        return LCA(field.threshold).code(moved, args) - y

    def __getattr__(self, name: str) -> Any:
        return getattr(self.field, name)


def problem(gram: str, ridge: float) -> ReconstructionArgs:
    torch.manual_seed(0)
    if gram == "convolution":
        conv = VARSConvAttention(6, (4, 4), num_filters=3, ridge=ridge, sparsity=0.3, dtype=F64)
        return map_detached(conv.problem(torch.randn(2, 16, 6, dtype=F64))[0])
    learned = False if gram in ("plain", "shared") else gram
    layer = VARSAttention(12, 2, num_features=7, learned=learned, ridge=ridge, dtype=F64)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    args = map_detached(layer.problem(torch.randn(2, 9, 12, dtype=F64))[0])
    if gram == "shared":  # one Gram for all heads and samples, broadcast against the drive
        one = shifted(args.dense_gram[:1, :1].clone(), torch.tensor(0.0, dtype=F64))
        args = args._replace(gram=one, rate=args.rate[:1, :1].clone())
    return args


def map_detached(args: Any) -> Any:
    return solvers.tree.map_tensors(Tensor.detach, args)


@each_field
@each_gram
@each_ridge
def test_it_is_the_state_and_its_rate(field: Any, gram: str, ridge: float) -> None:
    args = problem(gram, ridge)
    y = torch.randn_like(args.drive)
    expected = y + Valued(field)(None, y, args)
    assert field.iterate(y, args).allclose(expected, rtol=1e-12, atol=1e-13)
    assert (y + field(None, y, args)).allclose(expected, rtol=1e-12, atol=1e-13)
    with torch.no_grad():
        before = y.clone()
        first = field.iteration(args)
        assert first(y).allclose(expected, rtol=1e-12, atol=1e-13)
        assert first(y).allclose(expected, rtol=1e-12, atol=1e-13)  # nothing it holds was written to
        assert y.equal(before)


@each_field
@each_gram
def test_its_derivatives_are_those_of_the_value(field: Any, gram: str) -> None:
    results = []
    for apply in (field.iterate, lambda y, args: y + Valued(field)(None, y, args)):
        args = problem(gram, 0.2)
        torch.manual_seed(1)
        y = torch.randn_like(args.drive).requires_grad_()
        leaves = [y, *(tensor.requires_grad_() for tensor in solvers.tree.tensors(args))]
        value = apply(y, args)
        first = torch.autograd.grad((value * value.detach().cos()).sum(), leaves, create_graph=True, allow_unused=True)
        scalar = sum(gradient.square().sum() for gradient in first if gradient is not None)
        second = torch.autograd.grad(scalar, leaves, allow_unused=True)
        results.append([*first, *second])
    for got, expected in zip(*results, strict=True):
        assert (got is None) == (expected is None)
        if got is not None:
            assert got.allclose(expected, rtol=1e-9, atol=1e-11)


SOLVERS = {
    "euler": solvers.Euler(),
    **{
        name: solvers.get(name, rtol=0.0, atol=1e-8, max_steps=20_000)
        for name in ("fixed_point", "nesterov", "anderson", "douglas_rachford")
    },
}


@pytest.mark.parametrize("dynamics", [ProximalFlow, LCA])
@pytest.mark.parametrize("gram", ["plain", "coupling", "monotone", "convolution", "shared"])
@pytest.mark.parametrize("name", SOLVERS)
def test_solves_are_those_by_the_value(name: str, gram: str, dynamics: Any) -> None:
    if (name, gram) == ("nesterov", "monotone"):
        pytest.skip("refused: a rotation is no gradient")
    args, field = problem(gram, 0.2), dynamics()
    y0 = field.feedforward(args)
    with torch.no_grad():
        got = solvers.solve(field, y0, 5.0, SOLVERS[name], args)
        expected = solvers.solve(Valued(field), y0, 5.0, SOLVERS[name], args)
    assert got.success.all()
    tolerance = 1e-11 if name == "euler" else 1e-6  # of relaxations the last bits decide by a step when they stop
    assert got.y1.allclose(expected.y1, rtol=0, atol=tolerance)
    assert (got.stats["num_steps"] - expected.stats["num_steps"]).abs().max() <= (0 if name == "euler" else 2)


@pytest.mark.parametrize("dynamics", [ProximalFlow, LCA])
def test_the_implicit_gradient_with_a_gram_that_is_not_symmetric(dynamics: Any) -> None:
    """A plain tensor counts as symmetric; where it is not, the residual of the linear solve must tell."""
    gradients = []
    for field in (dynamics(), Valued(dynamics())):
        args = problem("plain", 0.5)
        skew = torch.randn_like(args.dense_gram)
        leaves = args._replace(gram=(args.gram + 0.1 * (skew - skew.mT)).detach().requires_grad_())
        leaves.drive.requires_grad_()
        solver = solvers.FixedPoint(rtol=0, atol=1e-12, max_steps=20_000)
        adjoint = "implicit" if isinstance(field, dynamics) else solvers.Truncated(4000)
        torch.manual_seed(2)
        y1 = solvers.solve(field, torch.zeros_like(args.drive), solver=solver, args=leaves, adjoint=adjoint).y1
        gradients.append(torch.autograd.grad((y1 * torch.randn_like(y1)).sum(), (leaves.drive, leaves.gram)))
    for got, expected in zip(*gradients, strict=True):
        assert (got - expected).abs().max() <= 1e-6 * expected.abs().max()
