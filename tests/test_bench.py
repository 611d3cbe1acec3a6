"""The benches print what they measure, and the ratios that hold on any machine hold."""

import copy
import inspect
import json
import runpy
from pathlib import Path

import pytest
from typer.testing import CliRunner

import solvers
from vars_ode.bench import BENCHES, record, run, table
from vars_ode.bench.equilibrium import equilibrium
from vars_ode.bench.layer import layer
from vars_ode.bench.memory import memory
from vars_ode.bench.model import model
from vars_ode.bench.solver import solver
from vars_ode.bench.truncated import truncated
from vars_ode.cli import app
from vars_ode.cli.bench import bench

ROOT = Path(__file__).parents[1]


def test_iterations_to_equilibrium() -> None:
    iterations = {row.solver: row.iterations for row in equilibrium(max_steps=1000)}
    assert all(count is not None for count in iterations.values())
    accelerated = iterations["nesterov"], iterations["anderson"]  # Anderson's moves by a tenth with the last bits
    assert iterations["fixed_point"] > 2 * max(accelerated)
    assert min(accelerated) > 2 * iterations["douglas_rachford"]
    assert iterations["douglas_rachford"] <= 33


def test_growth_of_memory() -> None:
    rows = memory((5, 40), images=1)
    growth = {row.adjoint: row.growth for row in rows if row.measured == "solve"}
    assert growth["direct"] > 5
    assert growth["checkpointed"] < 3  # near the square root of 8
    assert growth["implicit"] == pytest.approx(1, abs=0.25)  # its GMRES may need some vectors more or fewer
    assert growth["continuous"] == pytest.approx(1, abs=0.05)
    over_direct = {row.adjoint: row.over_direct for row in rows if row.measured == "layer"}
    assert over_direct["direct"] > 1.4
    assert max(over_direct["checkpointed"], over_direct["implicit"]) < 1.3


def test_layers_over_products_and_over_fused_attention() -> None:
    rows = layer(repeats=1, tokens=(16, 49))
    assert [row.layer for row in rows] == ["vars-d", "vars-sd"] * 2 + ["vars-d"] * 2 + ["vars-sd"] * 2
    assert all(row.eager_over_against == pytest.approx(row.layer_ms / row.against_ms) for row in rows)
    assert [row.input for row in rows if row.growth_exponent is not None] == ["2 x 49"] * 2


def test_models_of_two_checkouts_take_turns() -> None:
    rows = model(repeats=1, attentions=("softmax",), batch=2, img_size=32, against=str(ROOT))
    assert {row.measured for row in rows} >= {"forward", "training step"}
    assert all(row.speedup is not None and row.difference == 0 for row in rows)


def test_another_checkout_is_one(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bench", "model", "--against", str(tmp_path)])
    assert result.exit_code == 2
    assert "is no checkout of this project" in result.output


def test_options_reach_the_benches_that_have_them() -> None:
    with pytest.raises(ValueError, match="no use for --against; model have"):
        run("solver", {"against": "."})
    with pytest.raises(ValueError, match="no device 'gpu' here"):
        run("layer", {"device": "gpu"})


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
    rows = solver(repeats=5, adaptive_repeats=1)  # which refuses to compare what does not agree
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


def test_every_ratio_is_found_by_its_name() -> None:
    row = {
        "case": "a",
        "euler ms": 2.0,
        "milliseconds": 3.0,
        "ratio": 1.5,
        "growth": 2,
        "over direct": 0.5,
        "kib 5": 1.0,
    }
    old = record.record("b", [row], {})
    changed = {name: 2 * value if isinstance(value, float | int) else value for name, value in row.items()}
    places = [change.place for change in record.changes(old, record.record("b", [changed], {}), 0.2)]
    assert places == ["a: ratio", "a: growth", "a: over direct"]


def test_a_ratio_that_moved_is_named_and_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"solver": "euler", "time over ista": 2.0}, {"solver": "rk4", "time over ista": 4.0}]
    monkeypatch.setitem(BENCHES, "solver", lambda: rows)
    saved = tmp_path / "old.json"
    assert CliRunner().invoke(app, ["bench", "solver", "--json", str(saved)]).exit_code == 0
    content = json.loads(saved.read_text())
    assert content["rows"] == rows
    assert content["environment"]["torch"]

    same = CliRunner().invoke(app, ["bench", "solver", "--compare", str(saved)])
    assert same.exit_code == 0
    assert "no ratio has changed by more than 20%" in same.output

    moved = copy.deepcopy(rows)
    moved[1]["time over ista"] = 5.0
    monkeypatch.setitem(BENCHES, "solver", lambda: moved)
    result = CliRunner().invoke(app, ["bench", "solver", "--compare", str(saved)])
    assert result.exit_code == 1
    assert "rk4: time over ista: 4 -> 5 (+25%)" in result.output
    assert "euler: " not in result.output
    assert CliRunner().invoke(app, ["bench", "solver", "--compare", str(saved), "--tolerance", "0.3"]).exit_code == 0

    monkeypatch.setitem(BENCHES, "solver", lambda: rows[:1])
    result = CliRunner().invoke(app, ["bench", "solver", "--compare", str(saved)])
    assert (result.exit_code, "rk4: time over ista: only in the old table" in result.output) == (1, True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "is no JSON"),
        ("[]", "is no table of a bench"),
        ('{"bench": "layer", "rows": [], "environment": {}}', "of the bench 'layer', this one of 'solver'"),
    ],
)
def test_a_table_that_does_not_compare(
    content: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BENCHES, "solver", lambda: [{"solver": "euler"}])
    saved = tmp_path / "old.json"
    saved.write_text(content)
    result = CliRunner().invoke(app, ["bench", "solver", "--compare", str(saved)])
    assert result.exit_code == 2
    assert message in result.output


def test_a_tolerance_is_a_number_above_zero() -> None:
    table = record.record("b", [], {})
    with pytest.raises(ValueError, match="above 0"):
        record.changes(table, table, 0.0)
