"""Fixed-step solves under torch.compile and torch.func."""

from typing import Any

import pytest
import solver_cases as cases
import torch
from solver_problems import F64, pull
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import solvers


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


TRACED = [(case, None) for case in cases.FIXED]
TRACED += [(case, save_at) for case in cases.FIXED[:4:3] for save_at in ("steps", (0.0, 0.3, 1.0))]  # Euler and RK4


@pytest.mark.parametrize(("case", "save_at"), TRACED, ids=str)
def test_compiles_as_one_graph_and_once(case: cases.SolverCase, save_at: Any) -> None:
    field, y0, args = pull()

    def endpoint(y0: Tensor, args: Any) -> tuple[Tensor, Tensor]:
        solution = solvers.solve(field, y0, 1.0, case.solver, args, save_at=save_at)
        return solution.y1, solution.ys

    counter = CompileCounter()
    compiled = torch.compile(endpoint, backend=counter, fullgraph=True)
    for scale in (1.0, 2.0):
        for got, expected in zip(compiled(scale * y0, args), endpoint(scale * y0, args), strict=True):
            assert got.allclose(expected, rtol=1e-12)
    assert counter.frame_count == 1
    assert counter.op_count > 5


@pytest.mark.parametrize("adjoint", ["direct", "checkpointed"])
def test_gradients_through_a_compiled_solve(adjoint: str) -> None:
    field, y0, args = pull()

    def loss(y0: Tensor) -> Tensor:
        return (solvers.solve(field, y0, 1.0, "rk4", args, adjoint=adjoint).y1 ** 2).sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=adjoint == "direct")
    plain, traced = y0.clone().requires_grad_(), y0.clone().requires_grad_()
    loss(plain).backward()
    compiled(traced).backward()
    assert plain.grad is not None
    assert traced.grad is not None
    assert traced.grad.allclose(plain.grad, rtol=1e-12)


def test_compiles_under_autocast_with_every_failure_mode() -> None:
    field, y0, args = pull(dtype=torch.float32)
    for on_failure in ("last", "nan"):
        counter = CompileCounter()

        def end(y0: Tensor, on_failure: Any = on_failure) -> Tensor:
            return solvers.solve(field, y0, 1.0, "heun", args, on_failure=on_failure).y1

        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = torch.compile(end, backend=counter, fullgraph=True)(y0)
        assert got.allclose(end(y0), rtol=1e-5)
        assert counter.frame_count == 1


@cases.each(cases.FIXED)
def test_vmap_agrees_with_a_loop(case: cases.SolverCase) -> None:
    field, y0, args = pull(batch=4)
    gains = torch.linspace(0.1, 0.9, 5, dtype=F64)[:, None].expand(5, 3)

    def end(gain: Tensor) -> Tensor:
        return solvers.solve(field, y0, 1.0, case.solver, {**args, "shape": (gain, args["shape"][1])}).y1

    with torch.no_grad():
        assert torch.func.vmap(end)(gains).allclose(torch.stack([end(gain) for gain in gains]), rtol=1e-12)


@cases.each(cases.FIXED)
def test_jacobians(case: cases.SolverCase) -> None:
    field, y0, args = pull(batch=1)

    def end(y0: Tensor) -> Tensor:
        return solvers.solve(field, y0, 1.0, case.solver, args).y1

    expected = torch.autograd.functional.jacobian(end, y0)
    assert torch.func.jacrev(end)(y0).allclose(expected, rtol=1e-12)
    assert torch.func.jacfwd(end)(y0).allclose(expected, rtol=1e-12)


def test_gradients_per_sample_by_vmap_of_grad() -> None:
    field, y0, args = pull(batch=4)

    def loss(y0: Tensor, drive: Tensor) -> Tensor:
        one = solvers.solve(field, y0[None], 1.0, "rk4", {**args, "drive": drive[None]})
        return (one.y1**2).sum()

    per_sample = torch.func.vmap(torch.func.grad(loss))(y0, args["drive"])
    leaf = y0.clone().requires_grad_()
    (solvers.solve(field, leaf, 1.0, "rk4", args).y1 ** 2).sum().backward()
    assert leaf.grad is not None
    assert per_sample.allclose(leaf.grad, rtol=1e-12)
    assert torch.func.hessian(loss)(y0[0], args["drive"][0]).isfinite().all()
