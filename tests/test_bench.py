"""The benches print what they measure, and the ratios that hold on any machine hold."""

import inspect
import runpy
from pathlib import Path

import pytest
from typer.testing import CliRunner

import solvers
from vars_ode.bench import BENCHES, table
from vars_ode.bench.equilibrium import equilibrium
from vars_ode.bench.memory import memory
from vars_ode.bench.solver import solver
from vars_ode.bench.truncated import truncated
from vars_ode.cli import app
from vars_ode.cli.bench import bench


def test_iterations_to_equilibrium() -> None:
    iterations = {row.solver: row.iterations for row in equilibrium(max_steps=1000)}
    assert all(count is not None for count in iterations.values())
    accelerated = iterations["nesterov"], iterations["anderson"]  # Anderson's moves by a tenth with the last bits
    assert iterations["fixed_point"] > 2 * max(accelerated)
    assert min(accelerated) > 2 * iterations["douglas_rachford"]
    assert iterations["douglas_rachford"] <= 33


def test_growth_of_memory() -> None:
    growth = {row.adjoint: row.growth for row in memory((5, 80))}
    assert growth["direct"] > 7
    assert growth["checkpointed"] < 4  # the square root of 16
    assert growth["implicit"] == pytest.approx(1, abs=0.25)  # its GMRES may need some vectors more or fewer
    assert growth["continuous"] == pytest.approx(1, abs=0.05)


def test_truncated_gradients_near_the_implicit_one() -> None:
    rows = [list(row.cosine.values()) for row in truncated(("coupling",), num_inputs=4)]
    assert all(row == sorted(row) for row in rows)  # more terms are nearer
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)  # and so is a stronger contraction
    assert rows[-1][-1] > 0.9999


def test_table_aligns_and_marks_what_is_missing() -> None:
    text = table([{"solver": "euler", "kib": {5: 1.23456}}, {"solver": "rk4", "kib": {5: None}}])
    assert text.splitlines() == ["solver  kib 5", "euler   1.235", "rk4         -"]


def test_unknown_bench_is_one_sentence() -> None:
    result = CliRunner().invoke(app, ["bench", "speed"])
    assert result.exit_code == 2
    assert f"choose one of {', '.join(BENCHES)}" in result.output


def test_tour_visits_every_solver(capsys: pytest.CaptureFixture[str]) -> None:
    tour = runpy.run_path(str(Path(__file__).parent.parent / "examples" / "solvers_tour.py"))
    tour["main"](num_tokens=16, dim=8)
    errors = {line.split()[0]: float(line.split()[1]) for line in capsys.readouterr().out.splitlines()[1:]}
    assert tuple(errors) == solvers.available()
    relaxed = [error for name, error in errors.items() if solvers.get(name).reaches_equilibrium]
    assert max(relaxed) < 1e-3 < min(error for name, error in errors.items() if error not in relaxed)


def test_a_solve_beside_a_loop_by_hand() -> None:
    rows = solver(repeats=20, adaptive_repeats=1)  # which refuses to compare what does not agree
    fixed, adaptive = rows[:2], rows[2:]
    assert [(row.problems, row.templates, row.width) for row in fixed] == [(48, 64, 32), (8, 16, 8)]
    assert all(row.ratio == pytest.approx(row.solve_us / row.beside_us) for row in rows)
    assert fixed[0].beside_us > fixed[1].beside_us
    assert [row.solver for row in adaptive] == 2 * ["bosh3", "dopri5", "tsit5", "dopri8"]
    assert all(row.error < 1e-3 and row.beside_error < 1e-3 for row in adaptive)
    assert {row.beside for row in adaptive} == {"torchode", "torchdiffeq"}


def test_the_help_explains_every_bench() -> None:
    shown = " ".join(inspect.signature(bench).parameters["name"].annotation.__metadata__[0].help.split())
    assert {name for name in BENCHES if f"{name}: " not in shown} == set()
