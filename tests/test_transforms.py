"""Layers, fields and solves under torch.func: vmap, per-sample gradients, forward mode; and second derivatives."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

import solvers
from vars_ode import LCA, PerformerAttention, ProximalFlow, ReconstructionArgs, VARSAttention, VARSConvAttention
from vars_ode.fields import soft_threshold

LAYERS: dict[str, Any] = {
    "dynamic": lambda **options: VARSAttention(8, 2, **options),
    "static+dynamic": lambda **options: VARSAttention(8, 2, dictionary="static+dynamic", **options),
    "softmax": lambda **options: VARSAttention(8, 2, dictionary="softmax", **options),
    "monotone": lambda **options: VARSAttention(8, 2, learned="monotone", dynamics="lca", **options),
    "convolutional": lambda **options: VARSConvAttention(8, grid=(3, 3), sparsity=0.5, **options).eval(),
    "performer": lambda **options: PerformerAttention(8, 2),
}
SOLVERS = ("euler", "rk4", "exponential_euler", "fixed_point", "anderson")
CASES = [(name, solver) for name in LAYERS for solver in SOLVERS if name != "performer" or solver == "euler"]
CASES += [("dynamic", "nesterov"), ("dynamic", "douglas_rachford")]
FORWARD = [*CASES, ("dynamic", "tsit5")]  # error control, which refuses vmap


def layer(name: str, solver: str = "euler") -> Any:
    torch.manual_seed(0)
    if solver in ("fixed_point", "anderson", "nesterov", "douglas_rachford"):
        return LAYERS[name](solver=solvers.get(solver, max_steps=20), ridge=0.5)
    return LAYERS[name](solver=solver, t1=2.0)


def tokens() -> Tensor:
    return torch.randn(3, 9, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.filterwarnings("ignore::solvers.SolverWarning")
@pytest.mark.parametrize(("name", "solver"), CASES)
def test_vmap_over_samples_is_the_batch(name: str, solver: str) -> None:
    module, x = layer(name, solver).double(), tokens().double()
    torch.testing.assert_close(vmap(lambda sample: module(sample[None])[0])(x), module(x))


@pytest.mark.filterwarnings("ignore::solvers.SolverWarning")
@pytest.mark.parametrize(("name", "solver"), CASES)
def test_gradients_per_sample(name: str, solver: str) -> None:
    module, x = layer(name, solver).double(), tokens().double()
    parameters = dict(module.named_parameters())

    def loss(values: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(module, values, sample[None]).square().sum()

    found = vmap(grad(loss), (None, 0))(parameters, x)
    for index, sample in enumerate(x):
        expected = torch.autograd.grad(loss(parameters, sample), list(parameters.values()))
        for (name, got), other in zip(found.items(), expected, strict=True):
            torch.testing.assert_close(got[index], other, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.filterwarnings("ignore::solvers.SolverWarning")
@pytest.mark.parametrize(("name", "solver"), FORWARD)
def test_forward_mode_is_the_transpose_of_backward_mode(name: str, solver: str) -> None:
    module, x = layer(name, solver).double(), tokens().double()
    direction, weights = torch.randn_like(x), torch.randn_like(x)
    _, tangent = jvp(module, (x,), (direction,))
    with forward_ad.dual_level():
        torch.testing.assert_close(forward_ad.unpack_dual(module(forward_ad.make_dual(x, direction))).tangent, tangent)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad((module(x) * weights).sum(), x)
    torch.testing.assert_close((tangent * weights).sum(), (gradient * direction).sum())


@pytest.mark.parametrize("name", ["dynamic", "softmax", "convolutional"])
def test_jacobians_agree(name: str) -> None:
    module, x = layer(name).double(), tokens()[:1].double()
    torch.testing.assert_close(jacfwd(module)(x), jacrev(module)(x))


@pytest.mark.parametrize("threshold", [0.3, 0.0])
@pytest.mark.parametrize("field", [ProximalFlow(), LCA()], ids=repr)
def test_fields_under_transforms(field: Any, threshold: float) -> None:
    drive = torch.randn(4, 3, 5, dtype=torch.float64)
    gram = torch.eye(3, dtype=torch.float64) + 0.1

    def solved(drive: Tensor, sparsity: Tensor) -> Tensor:
        args = ReconstructionArgs(drive, gram, gram.new_tensor(0.5), sparsity)
        return solvers.solve(field, torch.zeros_like(drive), 3.0, "rk4", args).y1

    sparsity = torch.tensor(threshold, dtype=torch.float64)
    torch.testing.assert_close(vmap(lambda drive: solved(drive[None], sparsity)[0])(drive), solved(drive, sparsity))
    for argument in (0, 1):
        forward, backward = (jacobian(solved, argument)(drive, sparsity) for jacobian in (jacfwd, jacrev))
        torch.testing.assert_close(forward, backward)


@pytest.mark.parametrize("field", [ProximalFlow(), LCA()], ids=repr)
@pytest.mark.parametrize("name", ["fixed_point", "nesterov", "anderson", "douglas_rachford"])
def test_forward_mode_without_backward_mode(name: str, field: Any) -> None:
    """Under no_grad relaxations reuse memory, which forward mode does not bear; tangents are the same in both modes."""
    drive, direction = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    gram = (torch.eye(3, dtype=torch.float64) + 0.1).expand(4, 3, 3)
    rate, sparsity = gram.new_tensor([0.5, 0.6, 0.7, 0.7])[:, None, None], gram.new_tensor(0.3)
    tangents = []
    for recorded in (True, False):
        with torch.set_grad_enabled(recorded), forward_ad.dual_level():
            args = ReconstructionArgs(forward_ad.make_dual(drive, direction), gram, rate, sparsity)
            solution = solvers.solve(field, torch.zeros_like(drive), solver=name, args=args)
            tangents.append(forward_ad.unpack_dual(solution.y1).tangent)
    assert tangents[0].any()
    torch.testing.assert_close(tangents[1], tangents[0])


def test_second_derivatives_of_the_threshold() -> None:
    def loss(x: Tensor) -> Tensor:
        return (soft_threshold(x, 0.3 * x.square().mean()) ** 3).sum()

    x = torch.randn(6, dtype=torch.float64)
    torch.testing.assert_close(hessian(loss)(x), torch.autograd.functional.hessian(loss, x))


def test_masks_under_vmap() -> None:
    module, x, masks = layer("dynamic"), tokens(), torch.rand(3, 9) > 0.3
    found = vmap(lambda sample, mask: module(sample[None], attn_mask=mask[None, None, None])[0])(x, masks)
    torch.testing.assert_close(found, module(x, attn_mask=masks[:, None, None]))


def test_failures_under_vmap_are_warned_of() -> None:
    def grown(y0: Tensor) -> Tensor:
        return solvers.solve(lambda t, y, args: y * y, y0[None], 5.0, solvers.Euler(num_steps=50)).y1[0]

    with pytest.warns(solvers.SolverWarning, match="NONFINITE"):
        vmap(grown)(torch.tensor([[0.0], [9.0]]))


@pytest.mark.parametrize("solver", ["tsit5", "dopri8", "scipy"])
def test_error_control_refuses_vmap(solver: str) -> None:
    module = layer("dynamic")
    module.solver = solver
    with pytest.raises(ValueError, match=r"vmap"), torch.no_grad():
        vmap(lambda sample: module(sample[None])[0])(tokens())


@pytest.mark.parametrize("adjoint", ["checkpointed", "implicit", "continuous"])
def test_other_adjoints_refuse_transforms(adjoint: str) -> None:
    module = layer("dynamic", "nesterov" if adjoint == "implicit" else "euler")
    module.adjoint = adjoint
    with pytest.raises(ValueError, match=rf"the adjoint '{adjoint}' works under torch.autograd alone.*'direct'"):
        jvp(module, (tokens(),), (tokens(),))


MASKS = {
    "none": None,
    "boolean keys": torch.tensor([True, False, True, True, True])[None, None, None],
    "additive": torch.randn(5, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64),
    "causal": torch.ones(5, 5, dtype=torch.bool).tril(),
}


@pytest.mark.parametrize("name", MASKS)
def test_second_derivatives_through_the_softmax_dictionary(name: str) -> None:
    torch.manual_seed(0)
    module = VARSAttention(4, 2, dictionary="softmax", dtype=torch.float64).single_step_limit()
    x = torch.randn(1, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: module(x, attn_mask=MASKS[name]), x)


def test_a_gradient_penalty_through_the_softmax_dictionary() -> None:
    module, x = layer("softmax"), tokens().requires_grad_()
    (gradient,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
    (plain,) = torch.autograd.grad(module(x).square().sum(), x)
    torch.testing.assert_close(gradient, plain)
    gradient.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters() if parameter.grad is not None)
    assert module.qkv.weight.grad.abs().max() > 0
