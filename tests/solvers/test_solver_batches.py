"""Each sample is a problem of its own: other samples, layouts and batch sizes change nothing."""

import math
from typing import Any

import pytest
import solver_cases as cases
import torch
from torch import Tensor

import solvers

PER_SAMPLE = [case for case in cases.SOLVERS if case.per_sample]


def solve(case: cases.SolverCase, y0: Tensor, drive: Tensor, **options: Any) -> solvers.Solution:
    field, _, args = case.problem()
    args = {**args, "drive": drive}
    with torch.no_grad():
        return solvers.solve(field, y0, 3.0, case.solver, args, on_failure=options.pop("on_failure", "last"), **options)


def assert_same(solution: solvers.Solution, i: int, alone: solvers.Solution, j: int = 0) -> None:
    assert solution.y1[i].allclose(alone.y1[j], rtol=1e-13, atol=1e-15)
    assert solution.status[i] == alone.status[j]
    for key, value in alone.stats.items():
        assert solution.stats[key][i].allclose(value[j], rtol=1e-6, atol=1e-15), key


@pytest.mark.filterwarnings("ignore::solvers.SolverWarning")
@pytest.mark.parametrize("until", [None, solvers.SteadyState(rtol=0, atol=1e-3)], ids=["end", "steady"])
@pytest.mark.parametrize("neighbour", [1.0, 1000.0, math.nan, math.inf], ids=["mild", "1000x", "nan", "inf"])
@cases.each(PER_SAMPLE)
def test_other_samples_do_not_matter(case: cases.SolverCase, neighbour: float, until: Any) -> None:
    _, y0, args = case.problem()
    drive = args["drive"]
    alone = solve(case, y0[:1], drive[:1], until=until)
    other = torch.full_like(y0[:1], neighbour) if not math.isfinite(neighbour) else neighbour * y0[1:]
    both = solve(case, torch.cat([y0[:1], other]), torch.cat([drive[:1], drive[1:]]), until=until)
    assert_same(both, 0, alone)
    swapped = solve(case, torch.cat([other, y0[:1]]), torch.cat([drive[1:], drive[:1]]), until=until)
    assert_same(swapped, 1, alone)
    assert bool(both.success[1]) == math.isfinite(neighbour)


@pytest.mark.filterwarnings("ignore::solvers.SolverWarning")
@cases.each(PER_SAMPLE)
def test_trajectories_do_not_depend_on_a_nonfinite_sample(case: cases.SolverCase) -> None:
    _, y0, args = case.problem()
    times = torch.tensor([0.0, 0.7, 1.3, 3.0])
    for until in (None, solvers.SteadyState(rtol=0, atol=1e-1)):
        alone = solve(case, y0[:1], args["drive"][:1], save_at=times, until=until)
        broken = torch.cat([y0[:1], torch.full_like(y0[:1], math.nan)])
        both = solve(case, broken, args["drive"], save_at=times, until=until)
        assert both.ys[:, :1].allclose(alone.ys, rtol=1e-13, atol=1e-15)


@cases.each(cases.SOLVERS)
def test_layout_of_the_state_does_not_matter(case: cases.SolverCase) -> None:
    _, y0, args = case.problem()
    expected = solve(case, y0, args["drive"])
    transposed = y0.t().contiguous().t()
    strided = torch.stack([y0, torch.full_like(y0, math.nan)], -1)[..., 0]
    expanded = y0[:1].expand(2, -1)
    for layout in (transposed, strided):
        assert not layout.is_contiguous()
        before = layout.clone()
        assert solve(case, layout, args["drive"]).y1.allclose(expected.y1, rtol=1e-13)
        assert layout.equal(before)  # the caller's tensor is not written to
    both = solve(case, expanded, args["drive"][:1].expand(2, -1))
    assert both.y1[0].allclose(both.y1[1], rtol=1e-13)


@cases.each(cases.SOLVERS)
def test_batch_of_one_keeps_its_shape(case: cases.SolverCase) -> None:
    _, y0, args = case.problem()
    solution = solve(case, y0[:1], args["drive"][:1])
    assert solution.y1.shape == y0[:1].shape
    assert solution.ys.shape == (1, *y0[:1].shape)
    assert solution.status.shape == solution.success.shape == (1,)


@cases.each([case for case in cases.SOLVERS if case.equilibrium is cases.problems.Pull])
def test_states_may_have_any_rank(case: cases.SolverCase) -> None:
    class Decay:
        linear_rate = 1.0

        def __call__(self, t: Tensor, y: Tensor, args: Tensor) -> Tensor:
            return args - y

    values = torch.linspace(-1, 1, 24, dtype=torch.float64)
    expected = solvers.solve(Decay(), values[:, None], 2.0, case.solver, torch.ones(1, dtype=torch.float64)).y1[:, 0]
    tolerance = 1e-12 if case.kind != "adaptive" else 1e-3  # its own: the largest of the batch sets the step
    for shape in ((24,), (6, 4), (4, 3, 2), (2, 3, 2, 2)):
        y0 = values.view(shape)
        got = solvers.solve(Decay(), y0, 2.0, case.solver, torch.ones(1, dtype=torch.float64), save_at="steps")
        assert got.y1.shape == shape
        assert got.ys.shape[1:] == shape
        assert got.status.shape == shape[:1]
        assert all(value.shape == shape[:1] for value in got.stats.values())
        assert got.y1.flatten().allclose(expected, rtol=0, atol=tolerance)


@cases.each(cases.SOLVERS)
def test_empty_batches_and_states_pass_through(case: cases.SolverCase) -> None:
    _, y0, args = case.problem()
    solution = solve(case, y0[:0], args["drive"][:0])
    assert solution.y1.shape == (0, *y0.shape[1:])
    assert solution.status.shape == (0,)
