"""`vars_ode.analysis`: the measures against what is known in closed form, and their plots and exports."""

import builtins
import csv
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.image
import pytest
import torch
import torch.nn.functional as F
from core_cases import DICTIONARIES, DIM, GRID, HEADS, case_id, lasso_problem, tokens
from torch import Tensor, nn

import solvers
from vars_ode import LCA, ProximalFlow, StaticDynamic, VARSAttention, analysis, kkt_residual
from vars_ode.analysis import InitialValueProblem, Measurement
from vars_ode.analysis.active_set import active_set
from vars_ode.analysis.spectrum import spectral_radius
from vars_ode.convolutional import VARSConvAttention
from vars_ode.fields import ReconstructionArgs, energy

SMOOTH = InitialValueProblem(lambda t, y, args: args * y.sin() - 0.3 * t, torch.tensor([[0.5, 1.0], [2.0, -1.0]]))


def lasso(dynamics: type = ProximalFlow, **options: Any) -> InitialValueProblem:
    _, _, args = lasso_problem(**options)
    return InitialValueProblem(dynamics(), torch.zeros_like(args.drive), args)


def layer(**options: Any) -> VARSAttention:
    torch.manual_seed(1)
    return VARSAttention(DIM, HEADS, **{"num_features": 6, **options}).eval()


# --- order of convergence ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)])
def test_measured_orders(solver: str, order: int) -> None:
    found = analysis.order_of_convergence(SMOOTH.field, SMOOTH.y0, 1.5, torch.tensor(-0.8), solver)
    assert abs(found.slope - order) < 0.15
    assert found.nominal == order
    assert found.steps == (8, 16, 32, 64, 128)
    assert found.dt[0] == 1.5 / 8


def test_order_knows_an_exact_reference() -> None:
    y0 = torch.tensor([[1.0]])
    exact = torch.tensor([[math.exp(-1)]], dtype=torch.float64)
    found = analysis.order_of_convergence(
        lambda t, y, args: -y, y0, 1.0, solver="euler", steps=(10, 20), reference=exact
    )
    assert found.errors[0] == pytest.approx(abs(0.9**10 - exact.item()) / exact.item(), rel=1e-9)


def test_order_excludes_rounding_and_divergence() -> None:
    y0, steps = torch.full((1, 1), 9.0), (2, 100, 200)
    exact = y0.double() / (1 + 2 * y0.double() ** 2).sqrt()
    cubic = analysis.order_of_convergence(lambda t, y, args: -(y**3), y0, 1.0, steps=steps, reference=exact)
    assert cubic.used == (False, True, True)
    assert math.isnan(cubic.errors[0])
    assert math.isfinite(cubic.slope)
    still = analysis.order_of_convergence(lambda t, y, args: 0 * y, torch.ones(1, 1), 1.0)
    assert math.isnan(still.slope)
    assert still.to_rows()[0]["measured_order"] is None


def test_kinks_cap_the_order() -> None:
    problem = lasso()
    found = analysis.order_of_convergence(problem.field, problem.y0, 6.0, problem.args, "rk4", steps=(16, 32, 64, 128))
    assert 1.5 < found.slope < 3.0


# --- work-precision ------------------------------------------------------------------------------------------------


def test_more_work_less_error() -> None:
    found = analysis.work_precision(
        layer(), tokens(), ("euler", "rk4", "dopri5"), dtype=torch.float64, repeats=1, steps=(5, 10, 20, 40)
    )
    for name in ("euler", "rk4", "dopri5"):
        rows = [row for row in found.to_rows() if row["solver"] == name]
        errors, levels = [row["error"] for row in rows], [row["level"] for row in rows]
        assert levels == sorted(levels)
        assert all(later < earlier for earlier, later in itertools.pairwise(errors))
        evaluations = [row["evaluations"] for row in rows]
        assert evaluations == sorted(evaluations)
        # 1.7 times as large for Euler: what 40 steps leave, of which rounding moves the sixth digit.
        assert all(row["output_error"] < 2 * row["error"] for row in rows[-1:])
    assert all(row["milliseconds"] > 0 and row["peak_kib"] > 0 for row in found.to_rows())


def test_relaxation_approaches_the_equilibrium() -> None:
    found = analysis.work_precision(
        lasso(),
        solvers=("euler", "nesterov", "douglas_rachford"),
        reference="equilibrium",
        steps=(5, 20, 80, 320),
        repeats=1,
    )
    for name in ("euler", "nesterov", "douglas_rachford"):
        errors = [point.error for point in found.points if point.solver == name]
        assert errors[-1] < 0.03 * errors[0]


def test_errors_agree_with_the_solve() -> None:
    problem = lasso()
    (point,) = analysis.work_precision(problem, solvers=(solvers.Euler(num_steps=7),), repeats=1).points
    y1 = solvers.solve(problem.field, problem.y0, 5.0, solvers.Euler(num_steps=7), problem.args).y1
    exact = solvers.solve(problem.field, problem.y0, 5.0, solvers.RK4(num_steps=1000), problem.args).y1
    errors = (y1 - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
    assert point.error == pytest.approx(errors.mean().item(), rel=1e-3)
    assert point.evaluations == 7
    assert point.level == 0


def test_divergence_is_a_row_and_no_crash() -> None:
    problem = InitialValueProblem(lambda t, y, args: -1000 * y, torch.ones(1, 2), t1=1.0)
    found = analysis.work_precision(problem, solvers=("euler",), steps=(200,), repeats=1)
    assert found.points[0].error > 1e3
    with pytest.raises(ValueError, match="became infinite"):
        analysis.work_precision(InitialValueProblem(lambda t, y, args: y**3, torch.ones(1, 2)), solvers=("euler",))


def test_figures_are_pictures_in_a_notebook() -> None:
    found = analysis.order_of_convergence(lambda t, y, args: -y, torch.ones(1, 1), 1.0)
    assert found.plot()._repr_png_()[1:4] == b"PNG"  # type: ignore[attr-defined]


# --- trace ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dynamics", ["proximal", "lca"])
@pytest.mark.parametrize("learned", [False, "coupling", "dictionary"])
def test_trace_is_what_the_layer_says(dynamics: str, learned: Any) -> None:
    module, x = layer(dynamics=dynamics, learned=learned), tokens()
    found = analysis.trace(module, x, t1=5.0)
    assert found.energy is not None
    assert found.kkt is not None
    torch.testing.assert_close(found.energy, module.energy(x).double(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.kkt, module.kkt_residual(x).double(), rtol=1e-4, atol=1e-4)
    assert found.times.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert found.notes == ()


def test_energy_and_distance_fall_to_the_equilibrium() -> None:
    found = analysis.trace(lasso(), t1=200.0)
    assert found.energy is not None
    assert found.distance is not None
    assert found.equilibrium_energy is not None
    assert (found.energy.diff(dim=0) <= 1e-12).all()
    assert (found.energy >= found.equilibrium_energy - 1e-12).all()
    assert (found.distance.diff(dim=0) <= 1e-12).all()  # ISTA never moves away from the minimiser
    assert (found.distance[-1] < 1e-6).all()
    assert ((found.active_fraction >= 0) & (found.active_fraction <= 1)).all()
    assert (found.active_fraction[0] == 0).all()
    assert (found.active_fraction[-1] > 0).all()


def test_a_longer_horizon_keeps_the_step_of_the_layers_solver() -> None:
    found = analysis.trace(layer(t1=5.0, solver=solvers.Euler(num_steps=5)), tokens(), t1=40.0, spectral_points=2)
    assert found.times.tolist() == list(range(41))
    stretched = analysis.trace(lasso(), solver=solvers.Euler(num_steps=300), t1=300_000.0, spectral_points=2)
    assert any(note.startswith("not finite: ") for note in stretched.notes)  # as requested, with a note


def test_fields_without_energy_say_why() -> None:
    module = layer(learned="factor")
    with torch.no_grad():
        module.learned.factor.add_(0.05 * torch.randn_like(module.learned.factor))
    found = analysis.trace(module, tokens(), spectral_points=2)
    assert found.energy is None
    assert found.kkt is None
    assert found.equilibrium_energy is None
    assert "learned" in found.notes[0]
    assert found.to_rows()[0]["energy"] is None
    assert "gelu" in str(analysis.problem_of(layer(threshold="gelu"), tokens()).why_no_energy())


@pytest.mark.parametrize("solver", ["dopri5", "nesterov"])
def test_trace_with_times_of_their_own(solver: str) -> None:
    found = analysis.trace(lasso(), solver=solver, spectral_points=3)
    assert found.distance is not None
    assert len(found.times) == len(found.distance)
    assert (found.distance[-1] < found.distance[0]).all()


# --- spectral radius -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dynamics", [ProximalFlow, LCA])
@pytest.mark.parametrize("threshold", ["soft", "gelu"])
def test_spectral_radius_matches_the_dense_jacobian(dynamics: Any, threshold: str) -> None:
    problem = lasso(batch=2, m=5, d=2)
    field, y = dynamics(threshold), torch.randn_like(problem.y0)
    found = spectral_radius(field, y, problem.args, iterations=2000)
    for i in range(2):
        jacobian = torch.func.jacrev(lambda state, i=i: (state + field(None, state, problem.args))[i])(y)[..., i, :, :]
        dense = torch.linalg.eigvals(jacobian.reshape(10, 10)).abs().max()
        assert found[i].item() == pytest.approx(dense.item(), rel=1e-4)


def test_spectral_radius_of_complex_pairs() -> None:
    rotation = 0.9 * torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    found = spectral_radius(lambda t, y, args: y @ rotation.T - y, torch.randn(3, 2))
    assert found == pytest.approx(0.9 * torch.ones(3), rel=1e-3)


def test_ista_contracts_at_the_safe_rate_only() -> None:
    safe = analysis.trace(lasso(), t1=10.0)
    assert (safe.spectral_radius < 1).all()
    problem = lasso()
    fast = InitialValueProblem(problem.field, problem.y0, problem.args._replace(rate=4 * problem.args.rate))
    assert (analysis.trace(fast, t1=3.0).spectral_radius[1:] > 1).any()


# --- equilibrium and basin -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gaussian", "coherent", "orthonormal"])
@pytest.mark.parametrize("dynamics", [ProximalFlow, LCA])
def test_equilibrium_meets_the_optimality_conditions(kind: str, dynamics: Any) -> None:
    problem = lasso(dynamics, kind=kind)
    found = analysis.find_equilibrium(problem)
    assert found.converged.all()
    assert (kkt_residual(found.code, problem.args) < 1e-10).all()


def bumps(width: float = 0.2) -> InitialValueProblem:
    """Wide overlapping bumps as templates, whose Gram has a condition number above 1e16."""
    places, centres = torch.linspace(0, 1, 49, dtype=torch.float64), torch.linspace(0, 1, 24, dtype=torch.float64)
    phi = torch.exp(-0.5 * ((places[:, None] - centres) / width) ** 2)
    phi = phi / phi.norm(dim=0)
    gram, drive = (phi.mT @ phi).expand(2, 24, 24), phi.mT @ (3 + torch.randn(2, 49, 8, dtype=torch.float64))
    rate = 1 / torch.linalg.matrix_norm(gram, 2)[:, None, None]
    args = ReconstructionArgs(drive, gram, rate, torch.tensor(0.05, dtype=torch.float64))
    return InitialValueProblem(ProximalFlow(), torch.zeros_like(drive), args)


def test_equilibrium_of_an_ill_conditioned_problem_is_exact() -> None:
    problem = bumps()
    slow = problem.solve(solvers.DouglasRachford(max_steps=3000, rtol=0.0, atol=0.0)).y1
    assert kkt_residual(slow, problem.args).max() > 1e-4  # splitting alone does not find the support in time
    found = analysis.find_equilibrium(problem)
    assert found.converged.all()
    assert (kkt_residual(found.code, problem.args) < 1e-10).all()


@pytest.mark.parametrize("kind", ["gaussian", "coherent", "duplicate"])
def test_active_set_finds_the_minimiser_from_any_code(kind: str) -> None:
    """Also at a singular Gram, unless the start has both of two equal templates in its support."""
    _, _, args = lasso_problem(kind, m=12, sparsity=0.1)
    minimum = energy(
        analysis.find_equilibrium(InitialValueProblem(ProximalFlow(), torch.zeros_like(args.drive), args)).code, args
    )
    starts = [torch.zeros_like(args.drive)]
    if kind != "duplicate":
        starts += [torch.randn_like(args.drive), 100 * args.drive]
    for start in starts:
        found = active_set(start, args)
        assert (kkt_residual(found, args) < 1e-10).all()
        torch.testing.assert_close(energy(found, args), minimum)


def test_active_set_never_worsens_a_column() -> None:
    _, _, args = lasso_problem("duplicate", sparsity=0.1)
    start = torch.randn_like(args.drive)  # every template and its duplicate: there is no single solution
    for changes in (0, 1, 2, 100):
        found = active_set(start, args, changes)
        assert (kkt_residual(found, args) <= kkt_residual(start, args)).all()


def test_equilibrium_of_the_linear_flow_keeps_the_null_space_of_the_gram() -> None:
    _, _, args = lasso_problem("duplicate", sparsity=0.0)
    problem = InitialValueProblem(ProximalFlow(), torch.randn_like(args.drive), args)
    flow = problem.solve("rk4", 4000.0).y1
    torch.testing.assert_close(analysis.find_equilibrium(problem).state, flow, rtol=1e-6, atol=1e-6)


def test_convex_problems_have_one_attractor() -> None:
    found = analysis.basin(lasso(), num_starts=5)
    assert found.is_one_attractor
    assert found.verdict.startswith("One attractor")
    assert (found.start_distance[1:] > 0.5).all()
    assert (found.end_distance < 1e-4).all()


def test_an_unstable_rate_is_not_converged() -> None:
    problem = lasso()
    unstable = InitialValueProblem(problem.field, problem.y0, problem.args._replace(rate=5 * problem.args.rate))
    for solver in (None, solvers.FixedPoint(max_steps=200)):
        found = analysis.basin(unstable, num_starts=3, solver=solver)
        assert not found.is_one_attractor
        assert not found.converged.any()
        assert (found.attractors == 0).all()
        assert found.verdict.startswith("Not converged")
        found.plot()


def test_several_attractors_are_counted() -> None:
    bistable = InitialValueProblem(lambda t, y, args: 0.3 * (y - y**3), torch.full((2, 1), 0.1))
    found = analysis.basin(bistable, num_starts=12, scale=8.0)
    assert found.converged.all()
    assert (found.attractors == 3).all()  # -1, 1, and the unstable 0, where the second start is
    assert found.verdict.startswith("Several attractors")


def test_basin_of_a_layer_compares_outputs() -> None:
    found = analysis.basin(layer(), tokens(), num_starts=3)
    assert found.output_distance is not None
    assert found.is_one_attractor
    assert (found.output_distance < 1e-3).all()
    assert found.attractors.shape == (2, HEADS)


# --- single-step gap -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", DICTIONARIES, ids=case_id)
def test_no_gap_in_the_limit(case: Any) -> None:
    limit = case.layer().single_step_limit()
    found = analysis.single_step_gap(limit, tokens())
    assert found.to_limit.shape == (1, HEADS)
    assert (found.to_limit < 1e-6).all()
    assert (found.limit_cosine > 1 - 1e-6).all()
    assert (analysis.single_step_gap(case.layer(), tokens()).to_limit > 0.01).all()


def test_softmax_limit_is_softmax_attention() -> None:
    found = analysis.single_step_gap(layer(dictionary="softmax", num_features=None).single_step_limit(), tokens())
    assert (found.to_softmax < 1e-5).all()


def test_gap_of_every_layer_and_head_of_a_model() -> None:
    model = nn.Sequential(layer(), layer(t1=20.0), VARSAttention(DIM, 4), VARSConvAttention(DIM, GRID))
    found = analysis.single_step_gap(model, tokens())
    assert found.layers == ("0", "1", "2")
    assert len(found.to_rows()) == 2 * HEADS + 4
    assert found.to_limit[0].isnan().tolist() == [False, False, True, True]
    assert model.training


# --- attention maps ------------------------------------------------------------------------------------------------


def test_map_of_the_softmax_limit_is_softmax() -> None:
    limit = layer(dictionary="softmax", num_features=None).single_step_limit()
    x = tokens()
    found = analysis.attention_maps(limit, x, (1.0,), grid=GRID)
    q, k, _ = limit.queries_keys_values(x)
    expected = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    torch.testing.assert_close(found.maps[0], expected.detach(), rtol=1e-4, atol=1e-6)


def test_concentration_is_the_share_on_the_foreground() -> None:
    mask = torch.zeros(2, 12, dtype=torch.bool)
    mask[:, :3] = True
    found = analysis.attention_maps(layer(), tokens(), (0.0, 5.0), foreground=mask, grid=GRID)
    mass = found.maps.abs().double()
    torch.testing.assert_close(found.concentration, mass[..., :3].sum((-2, -1)) / mass.sum((-2, -1)))
    assert found.chance.tolist() == [0.25, 0.25]
    assert found.received.shape == (2, 2, *GRID)
    torch.testing.assert_close(found.received.sum((-2, -1)), torch.ones(2, 2))
    everything = analysis.attention_maps(layer(), tokens(), (1.0,), foreground=mask | True, grid=GRID)
    torch.testing.assert_close(everything.concentration, torch.ones(1, 2, HEADS).double())


def test_maps_at_the_horizon_are_the_layers_own() -> None:
    module, x = layer(solver=solvers.Euler(num_steps=10)), tokens()
    found = analysis.attention_maps(module, x, (0.0, 5.0), grid=GRID)
    torch.testing.assert_close(found.maps[1], module.attention_map(x))
    assert module.t1 == 5.0
    assert (found.maps[0] - found.maps[1]).abs().max() > 1e-3


def test_prefix_tokens_are_no_part_of_the_measure() -> None:
    x = torch.randn(2, 11, DIM)
    found = analysis.attention_maps(layer(), x, (1.0,))
    assert found.grid == (3, 3)
    assert found.foreground.shape == (2, 9)


def test_foreground_is_what_differs_from_the_border() -> None:
    images = torch.zeros(2, 1, 28, 28)
    images[:, :, 8:20, 8:20] = 0.8
    expected = F.adaptive_avg_pool2d(images, (7, 7)).flatten(1) > 0.4
    assert torch.equal(analysis.image_foreground(images, (7, 7)), expected)
    assert torch.equal(analysis.image_foreground(1 - images, (7, 7)), expected)
    assert not analysis.image_foreground(torch.ones(1, 3, 8, 8), (4, 4)).any()


# --- all of them ---------------------------------------------------------------------------------------------------

MEASURES: dict[str, Callable[[VARSAttention, Tensor], Measurement]] = {
    "order": lambda module, x: analysis.order_of_convergence(SMOOTH.field, SMOOTH.y0, 1.0, -1.0, steps=(4, 8)),
    "work_precision": lambda module, x: analysis.work_precision(module, x, ("euler", "heun"), steps=(2, 4), repeats=1),
    "trace": lambda module, x: analysis.trace(module, x, spectral_points=2),
    "basin": lambda module, x: analysis.basin(module, x, num_starts=2),
    "single_step_gap": analysis.single_step_gap,
    "attention_maps": lambda module, x: analysis.attention_maps(module, x, (0.0, 1.0), grid=GRID),
}


@pytest.mark.parametrize("name", MEASURES)
def test_plots_and_tables(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = layer(dictionary=StaticDynamic(grid=GRID), learned="dictionary"), tokens()
    found = MEASURES[name](module, x)
    rows = found.to_rows()
    assert len({tuple(row) for row in rows}) == 1
    with found.to_csv(tmp_path / "rows.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert len(written) == len(rows) > 0
    assert [float(w) for w in _numbers(written)] == pytest.approx([float(r) for r in _numbers(rows)])
    found.plot().savefig(tmp_path / "plot.png")
    picture = matplotlib.image.imread(tmp_path / "plot.png")
    assert picture.shape[0] > 100
    assert picture[..., :3].std() > 0.01
    _without_pandas(monkeypatch)
    with pytest.raises(ImportError, match=r"pip install pandas.*to_rows"):
        found.to_dataframe()


NUMBERS = ("error", "residual", "end_distance", "to_limit", "concentration")


def _numbers(rows: list[dict[str, Any]]) -> list[Any]:
    return [
        value for row in rows for key, value in row.items() if key in ("error", "residual", "end_distance", "to_limit")
    ]


def _without_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "pandas":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)


def test_the_convolutional_layer_is_measured_too() -> None:
    module = VARSConvAttention(DIM, GRID).eval()
    found = analysis.trace(module, tokens(), t1=10.0, spectral_points=2)
    assert found.energy is not None
    assert found.distance is not None
    torch.testing.assert_close(found.energy[:4], module.energy(tokens()).double(), rtol=1e-3, atol=1e-3)
    assert (found.energy.diff(dim=0) <= 1e-6).all()
    assert (found.distance[-1] <= found.distance[0]).all()


def test_training_mode_returns_and_dropout_plays_no_part() -> None:
    module = layer(attn_drop=0.5, proj_drop=0.5).train()
    first, second = (analysis.attention_maps(module, tokens(), (1.0,), grid=GRID) for _ in range(2))
    assert module.training
    assert module.attn_drop.training
    assert torch.equal(first.maps, second.maps)


PROBLEM = lasso()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: analysis.order_of_convergence(SMOOTH.field, SMOOTH.y0, 1.0, -1.0, "dopri5"), "fixed-step"),
        (lambda: analysis.order_of_convergence(SMOOTH.field, SMOOTH.y0, 1.0, -1.0, steps=(8,)), "two different"),
        (lambda: analysis.order_of_convergence(SMOOTH.field, SMOOTH.y0, 1.0, -1.0, "rk5"), "unknown solver"),
        (lambda: analysis.work_precision(PROBLEM, solvers="euler"), "sequence of names"),
        (lambda: analysis.work_precision(PROBLEM, solvers=("nesterov",)), 'reference="equilibrium"'),
        (lambda: analysis.work_precision(PROBLEM, reference="truth"), "unknown reference"),
        (lambda: analysis.work_precision(PROBLEM, tokens()), "leave x out"),
        (lambda: analysis.work_precision(layer()), "give x"),
        (lambda: analysis.trace(nn.Linear(3, 3), tokens()), "expected a VARS layer"),
        (lambda: analysis.trace(nn.Sequential(layer()), tokens()), "layer_inputs"),
        (lambda: analysis.basin(PROBLEM, num_starts=1), "at least 2"),
        (lambda: analysis.basin(PROBLEM, solver="rk4"), "does not stop at the equilibrium"),
        (lambda: analysis.single_step_gap(nn.Linear(DIM, 3), tokens()), "no VARS layer"),
        (lambda: analysis.single_step_gap(VARSConvAttention(DIM, GRID), tokens()), "single-step limit"),
        (lambda: analysis.attention_maps(layer(), tokens(), ()), "at least one"),
        (lambda: analysis.attention_maps(layer(), tokens(), (-1.0,)), "at least 0"),
        (lambda: analysis.attention_maps(layer(), tokens(), grid=(5, 5)), "25 positions"),
        (lambda: analysis.attention_maps(layer(), tokens(), grid=GRID, solver="nesterov"), "whatever the horizon"),
        (lambda: analysis.attention_maps(layer(), tokens(), grid=GRID, foreground=torch.ones(2, 12)), "boolean"),
    ],
)
def test_wrong_input_is_an_error(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_rates_under_which_momentum_diverges_still_converge() -> None:
    problem = lasso(kind="orthonormal", sparsity=0.1)
    long = InitialValueProblem(problem.field, problem.y0, problem.args._replace(rate=1.8 * problem.args.rate))
    assert not analysis.basin(long, num_starts=2, solver=solvers.Nesterov(max_steps=500)).converged.all()
    assert analysis.basin(long, num_starts=3).is_one_attractor
    operator = long.args._replace(gram=Applied(long.args.gram))
    found = analysis.find_equilibrium(InitialValueProblem(long.field, long.y0, operator))
    assert found.converged.all()


class Applied(NamedTuple):
    """A Gram that is only applied."""

    gram: Tensor

    def __matmul__(self, code: Tensor) -> Tensor:
        return self.gram @ code
