"""Properties that hold for random shapes, strides, types, horizons and masks."""

import math
from typing import Any

import solver_cases as cases
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import solvers
from solvers import SteadyState

FEW = settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)
DTYPES = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])
fixed_solvers = st.sampled_from([case.name for case in cases.FIXED])
flow_solvers = st.sampled_from(cases.FLOWS)
relaxation_solvers = st.sampled_from([case for case in cases.RELAXATIONS if case.equilibrium is cases.problems.Pull])


class Decay:
    """y' = args - y"""

    linear_rate = 1.0

    def __call__(self, t: Tensor, y: Tensor, args: Tensor) -> Tensor:
        return args - y


@st.composite
def states(draw: Any, shape: Any = None, dtype: Any = DTYPES) -> Tensor:
    """Random values in random memory layouts: permuted, strided, expanded or offset."""
    shape = draw(SHAPES) if shape is None else shape
    values = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))).to(draw(dtype))
    layout = draw(st.sampled_from(["plain", "permuted", "strided", "offset"]))
    if layout == "permuted":
        return values.permute(*reversed(range(values.ndim))).contiguous().permute(*reversed(range(values.ndim)))
    if layout == "strided":
        return torch.stack([values, values + 1], -1)[..., 0]
    if layout == "offset":
        return torch.cat([values, values])[len(values) :]
    return values


@FEW
@given(y0=states(), case=flow_solvers, t0=st.floats(-3, 3), length=st.floats(-2, 2))
def test_shape_type_and_bounds(y0: Tensor, case: cases.SolverCase, t0: float, length: float) -> None:
    solution = solvers.solve(Decay(), y0, t0 + length, case.solver, torch.zeros(1), t0=t0)
    assert solution.y1.shape == y0.shape
    assert solution.y1.dtype == y0.dtype
    assert solution.status.shape == y0.shape[:1]
    assert solution.success.all()
    assert (solution.y1.sign() * y0.sign() >= 0).all()  # decay and growth keep the sign
    if length >= 0:
        assert (solution.y1.abs() <= y0.abs() * (1 + 1e-3)).all()


@FEW
@given(
    y0=states(dtype=st.just(torch.float64)),
    case=flow_solvers,
    fractions=st.lists(st.floats(0, 1), min_size=1, max_size=6).map(sorted),
    t0=st.floats(-3, 3),
    length=st.sampled_from([-0.7, 0.3, 1.9]),
)
def test_any_times_can_be_saved(
    y0: Tensor, case: cases.SolverCase, fractions: list[float], t0: float, length: float
) -> None:
    times = t0 + length * torch.tensor(fractions, dtype=torch.float64)
    solution = solvers.solve(Decay(), y0, t0 + length, case.accurate, torch.zeros(1), t0=t0, save_at=times)
    assert solution.ys.shape == (len(fractions), *y0.shape)
    for fraction, state in zip(fractions, solution.ys, strict=True):
        expected = y0 * math.exp(-length * fraction)
        assert state.allclose(expected, rtol=0, atol=20 * case.accuracy * max(1.0, float(y0.abs().max())))


@FEW
@given(y0=states(shape=(3, 2), dtype=st.just(torch.float64)), name=fixed_solvers, cut=st.integers(1, 9))
def test_two_halves_make_a_whole(y0: Tensor, name: str, cut: int) -> None:
    """Integrating to the middle and on is integrating to the end, when the middle is on the grid."""
    dt, goal = 0.25, torch.ones(1, dtype=torch.float64)
    solver = solvers.get(name, dt=dt)
    whole = solvers.solve(Decay(), y0, 10 * dt, solver, goal).y1
    middle = solvers.solve(Decay(), y0, cut * dt, solver, goal).y1
    assert solvers.solve(Decay(), middle, 10 * dt, solver, goal, t0=cut * dt).y1.allclose(whole, rtol=1e-12, atol=1e-14)


@FEW
@given(mask=st.lists(st.booleans(), min_size=1, max_size=6), case=st.sampled_from(cases.SOLVERS))
def test_broken_samples_are_told_apart(mask: list[bool], case: cases.SolverCase) -> None:
    field, y0, args = case.problem(batch=len(mask))
    drive = torch.where(torch.tensor(mask)[:, None], math.nan, args["drive"].flatten(1)).view_as(args["drive"])
    solution = solvers.solve(field, y0, 1.0, case.solver, {**args, "drive": drive}, on_failure="nan")
    assert solution.success.tolist() == [not broken for broken in mask]
    assert solution.y1.flatten(1).isnan().all(1).tolist() == mask


@FEW
@given(order=st.permutations(range(5)), case=st.sampled_from([case for case in cases.SOLVERS if case.per_sample]))
def test_permuting_the_batch_permutes_the_answer(order: list[int], case: cases.SolverCase) -> None:
    field, y0, args = case.problem(batch=5)
    args, permuted = dict(args), {**args, "drive": args["drive"][order]}
    until = SteadyState(rtol=0, atol=1e-2)
    with torch.no_grad():
        straight = solvers.solve(field, y0, 2.0, case.solver, args, until=until)
        shuffled = solvers.solve(field, y0[order], 2.0, case.solver, permuted, until=until)
    assert shuffled.y1.allclose(straight.y1[order], rtol=1e-12, atol=1e-14)
    for key in ("num_steps", "num_field_evals"):
        assert shuffled.stats[key].equal(straight.stats[key][order])


@FEW
@given(y0=states(dtype=st.just(torch.float32)), case=relaxation_solvers, scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_relaxations_end_at_rest(y0: Tensor, case: cases.SolverCase, scale: float) -> None:
    goal = scale * torch.ones(1)
    rule = SteadyState(rtol=1e-4, atol=0)
    solution = solvers.solve(Decay(), y0, solver=case.solver, args=goal, until=rule)
    assert (solution.status == solvers.Status.STEADY_STATE).all()
    assert solution.y1.allclose(goal.expand_as(y0), rtol=2e-4)
