"""Floating point types: the solve happens in float32 at least, the answer comes back in the caller's type."""

import pytest
import solver_cases as cases
import torch
from solver_problems import Pull, pull
from torch import Tensor

import solvers

HALF = [torch.bfloat16, torch.float16]


def loose(case: cases.SolverCase) -> solvers.Solver:
    """The row's solver with a tolerance that float32 can reach."""
    return case.with_tolerance(1e-5) if case.with_tolerance else case.solver


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@cases.each(cases.SOLVERS)
def test_the_type_is_kept(case: cases.SolverCase, dtype: torch.dtype) -> None:
    field, y0, args = case.problem()
    field, y0, args = field.to(dtype), y0.to(dtype), solvers.tree.cast_floating(args, dtype)
    seen = set()

    def watched(t: Tensor, y: Tensor, args: dict) -> Tensor:  # type: ignore[type-arg]
        seen.update((t.dtype, y.dtype))
        return field(t, y, args)

    watched.linear_rate = 1.0  # type: ignore[attr-defined]
    for name in ("natural_step", "resolvent", "prox", "factorise", "code", "state"):
        if hasattr(field, name):
            setattr(watched, name, getattr(field, name))
    solution = solvers.solve(watched, y0, 2.0, loose(case), args)
    assert solution.y1.dtype == solution.ys.dtype == solution.ts.dtype == dtype
    assert solution.stats["residual"].dtype == dtype
    assert seen == {dtype}
    assert solution.success.all()


@pytest.mark.parametrize("dtype", HALF)
@cases.each(cases.SOLVERS)
def test_half_precision_is_solved_in_float32(case: cases.SolverCase, dtype: torch.dtype) -> None:
    field, y0, args = case.problem()
    field, y0, args = field.float(), y0.to(dtype), solvers.tree.cast_floating(args, dtype)
    got = solvers.solve(field, y0, 2.0, loose(case), args, save_at="steps")
    reference = solvers.solve(field, y0.float(), 2.0, loose(case), solvers.tree.cast_floating(args, torch.float32))
    assert got.y1.dtype == got.ys.dtype == dtype
    assert got.y1.equal(reference.y1.to(dtype))


@pytest.mark.parametrize("dtype", HALF)
@cases.each(cases.SOLVERS)
def test_autocast_does_not_reach_into_a_solve(case: cases.SolverCase, dtype: torch.dtype) -> None:
    field, y0, args = case.problem()
    field, y0, args = field.float(), y0.float(), solvers.tree.cast_floating(args, torch.float32)

    def through_matmul(t: Tensor, y: Tensor, args: Tensor) -> Tensor:  # autocast would lower it
        return field(t, y, args) + 0 * (y @ torch.eye(y.shape[-1]))

    through_matmul.linear_rate = 1.0  # type: ignore[attr-defined]
    for name in ("natural_step", "resolvent", "prox", "factorise", "code", "state"):
        if hasattr(field, name):
            setattr(through_matmul, name, getattr(field, name))
    plain = solvers.solve(through_matmul, y0, 2.0, loose(case), args).y1
    with torch.autocast("cpu", dtype=dtype):
        inside = solvers.solve(through_matmul, y0, 2.0, loose(case), args).y1
        assert (y0 @ y0.T).dtype == dtype
    assert inside.equal(plain)


def test_args_widen_the_solve_but_not_the_answer() -> None:
    field, y0, args = pull()
    got = solvers.solve(field, y0.float(), 2.0, "rk4", args)
    assert got.y1.dtype == torch.float32
    assert got.y1.equal(solvers.solve(field, y0.float().double(), 2.0, "rk4", args).y1.float())


def test_gradients_come_back_in_the_type_of_each_input() -> None:
    field, y0, args = Pull(dtype=torch.float32), *pull(dtype=torch.bfloat16)[1:]
    y0, drive = y0.requires_grad_(), args["drive"].requires_grad_()
    solvers.solve(field, y0, 2.0, "rk4", args).y1.sum().backward()
    assert y0.grad is not None
    assert drive.grad is not None
    assert y0.grad.dtype == drive.grad.dtype == torch.bfloat16


def test_integer_tensors_in_args_stay_integers() -> None:
    def field(t: Tensor, y: Tensor, args: dict) -> Tensor:  # type: ignore[type-arg]
        assert args["index"].dtype == torch.long
        return -y[:, args["index"]]

    y0 = torch.randn(2, 3, dtype=torch.bfloat16)
    assert solvers.solve(field, y0, 1.0, solvers.RK4(num_steps=2), {"index": torch.tensor([2, 1, 0])}).success.all()
