"""The implicit adjoint: what it refuses, what it says, what it reaches; and the linear solver below it."""

import warnings
from typing import Any

import pytest
import torch
from solver_problems import F64, Pull, pull
from torch import Tensor, nn

import solvers
from solvers import Implicit, SolverWarning, SteadyState
from solvers.krylov import gmres

REST = SteadyState(rtol=0, atol=1e-13)


def limit(field: Any, y0: Tensor, args: Any, **options: Any) -> solvers.Solution:
    return solvers.solve(
        field, y0, **{"solver": "fixed_point", "args": args, "adjoint": "implicit", "until": REST, **options}
    )


@pytest.mark.parametrize("solver", ["euler", "rk4", "dopri5", "scipy"])
@pytest.mark.parametrize("t1", [0.0, 2.0])
def test_a_finite_horizon_is_refused(solver: str, t1: float) -> None:
    field, y0, args = pull()
    with pytest.raises(ValueError, match=r"differentiates equilibria, but this solve ends at t1=.*'direct'"):
        limit(field, y0, args, solver=solver, t1=t1, until=None)


def test_samples_still_in_motion_are_reported() -> None:
    field, y0, args = pull()
    with pytest.warns(SolverWarning, match="2 of 2 samples reached t1 before a steady state"):
        limit(field, y0, args, solver="rk4", t1=2.0)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        limit(field, y0, args, solver="rk4", t1=2.0)


def test_a_second_derivative_is_refused() -> None:
    field, y0, args = pull()
    drive = args["drive"].clone().requires_grad_()
    y1 = limit(field, y0, {**args, "drive": drive}).y1
    for loss in (y1.sum(), (y1**2).sum()):
        with pytest.raises(RuntimeError, match=r"no second derivative.*adjoint='direct'"):
            torch.autograd.grad(loss, drive, create_graph=True)


def test_a_gradient_of_the_way_is_refused_and_not_missing() -> None:
    field, y0, args = pull()
    solution = limit(field, y0, args, save_at="steps")
    assert solution.ys[-1].equal(solution.y1)
    solution.y1.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiates the equilibrium `y1` alone"):
        solution.ys.sum().backward()
    assert limit(field, y0, args).ys.sum().requires_grad


def test_the_initial_state_has_a_gradient_of_zero() -> None:
    field, y0, args = pull()
    y0.requires_grad_()
    limit(field.requires_grad_(False), y0, args).y1.sum().backward()
    assert y0.grad is not None
    assert y0.grad.equal(torch.zeros_like(y0))


def test_tensors_that_a_field_closes_over_get_their_gradient() -> None:
    drive = torch.randn(2, 3, dtype=F64, requires_grad=True)
    limit(lambda t, y, args: (drive.sin() - y) / 2, torch.zeros(2, 3, dtype=F64), None).y1.sum().backward()
    assert drive.grad is not None
    assert drive.grad.allclose(drive.detach().cos())


def test_parameters_swapped_in_for_a_call_get_their_gradient() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.field = Pull()

        def forward(self, y0: Tensor, args: Any) -> Tensor:
            return limit(self.field, y0, args).y1

    layer, (_, y0, args) = Layer(), pull()
    swapped = (0.5 * layer.field.weight.detach()).requires_grad_()
    torch.func.functional_call(layer, {"field.weight": swapped}, (y0, args)).sum().backward()
    with torch.no_grad():
        layer.field.weight.mul_(0.5)
    layer(y0, args).sum().backward()
    assert swapped.grad is not None
    assert layer.field.weight.grad is not None
    assert swapped.grad.allclose(layer.field.weight.grad, rtol=1e-9)


def test_a_sample_does_not_feel_its_batch_mates() -> None:
    gradients = []
    for scale in (1.0, 1e4):
        field, y0, args = pull()
        drive = args["drive"].clone().requires_grad_()
        y1 = limit(field, y0, {**args, "drive": drive}).y1
        (y1[0].sum() + scale * y1[1].sum()).backward()
        assert drive.grad is not None
        gradients.append(drive.grad[0])
    assert gradients[0].allclose(gradients[1], rtol=1e-11)


@pytest.mark.filterwarnings("ignore::solvers.SolverWarning")
def test_a_broken_batch_mate_costs_neither_the_gradient_nor_the_time() -> None:
    field, y0, args = pull()
    products = []
    drive = args["drive"].clone().requires_grad_()

    def counted(t: Tensor, y: Tensor, args: Any) -> Tensor:
        if y.requires_grad:
            y.register_hook(lambda gradient: products.append(1))
        return field(t, y, args)

    broken = torch.tensor([[1.0], [float("nan")]], dtype=F64)
    limit(counted, y0, {**args, "drive": drive * broken}).y1[0].sum().backward()
    alone = args["drive"].clone().requires_grad_()
    limit(field, y0, {**args, "drive": alone}).y1[0].sum().backward()
    assert drive.grad is not None
    assert alone.grad is not None
    assert drive.grad[0].allclose(alone.grad[0], rtol=1e-11)
    assert len(products) < 20


def test_an_empty_batch() -> None:
    field, y0, args = pull()
    drive = args["drive"][:0].clone().requires_grad_()
    limit(field, y0[:0], {**args, "drive": drive}).y1.sum().backward()
    assert drive.grad is not None


def test_equilibria_that_are_not_isolated_are_reported() -> None:
    """y' = (b - y1 - y2) in both components: a line of equilibria, on which the solve stops somewhere."""
    b = torch.ones(1, 1, dtype=F64, requires_grad=True)
    solution = limit(
        lambda t, y, args: (args - y.sum(1, keepdim=True)).expand(-1, 2) / 4, torch.zeros(1, 2, dtype=F64), b
    )
    with pytest.warns(SolverWarning, match=r"residual of \d\.\d\d\de-\d\d, not 1\.000e-12, for 1 of 1 samples"):
        solution.y1[:, 0].sum().backward()
    assert b.grad is not None
    assert b.grad.isfinite().all()


def test_too_few_products_are_reported() -> None:
    field, y0, args = pull()
    solution = limit(field, y0, args, adjoint=Implicit(max_steps=2))
    with pytest.warns(SolverWarning, match="raise max_steps or restart"):
        solution.y1.sum().backward()
    solution = limit(field, y0, args, adjoint=Implicit(max_steps=2, rtol=0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solution.y1.sum().backward()


@pytest.mark.parametrize("options", [{"rtol": 0}, {"max_steps": 0}, {"restart": 0}])
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Implicit(**options)


@pytest.mark.parametrize("restart", [3, 10, 40])
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_gmres(dtype: torch.dtype, restart: int) -> None:
    a = (torch.eye(30, dtype=F64) + torch.randn(4, 30, 30, dtype=F64) / 12).to(dtype)
    b = torch.randn(4, 30, dtype=dtype) * torch.tensor([[1.0], [1e-6], [1e6], [0.0]], dtype=dtype)
    rtol = 1e-12 if dtype == F64 else 1e-6
    x, error = gmres(lambda x: (a @ x[..., None])[..., 0], b, rtol, 2000, restart)
    expected = torch.linalg.solve(a, b)
    assert (error <= 1.001 * rtol).all()  # it stops at rtol exactly, before a division
    assert ((x - expected).norm(dim=1) <= 100 * rtol * expected.norm(dim=1)).all()
    assert x[3].equal(torch.zeros_like(x[3]))


def test_gmres_where_simpler_methods_stand_still_or_break() -> None:
    rotation = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=F64)
    x, error = gmres(lambda x: x @ rotation.T, torch.ones(1, 2, dtype=F64), 1e-12, 10, 2)
    assert x.allclose(torch.tensor([[-1.0, 1.0]], dtype=F64))
    assert error < 1e-12
    singular = torch.tensor([1.0, 0.5, 0.0], dtype=F64)
    x, error = gmres(lambda x: singular * x, torch.tensor([[1.0, 1.0, 0.0]], dtype=F64), 1e-12, 20, 10)
    assert x.allclose(torch.tensor([[1.0, 2.0, 0.0]], dtype=F64))  # consistent: solved
    x, error = gmres(lambda x: singular * x, torch.tensor([[1.0, 1.0, 1.0]], dtype=F64), 1e-12, 20, 10)
    assert x.isfinite().all()  # not consistent: said so
    assert error > 1e-3


def test_gmres_counts_its_products() -> None:
    calls = []
    b = torch.randn(2, 10, dtype=F64)
    a = torch.diag(torch.linspace(1, 2, 10, dtype=F64))
    gmres(lambda x: calls.append(1) or x @ a, b, 1e-12, 500, 50)  # type: ignore[func-returns-value]
    assert len(calls) <= 12  # as many as distinct eigenvalues, and one for the true residual
