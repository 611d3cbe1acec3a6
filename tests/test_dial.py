"""A trained model under other solves: names of solves, stability, accuracy by solver, and the command."""

import csv
import math
from pathlib import Path

import pytest
import timm
import torch
from demo_cases import TINY
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset
from typer.testing import CliRunner

import solvers
import vars_ode
from vars_ode import analysis
from vars_ode.cli import app
from vars_ode.data import Preprocessing, fashion_mnist, labelled_pictures
from vars_ode.models import AT_REST, Solve, parse_solves, vars_layers, with_solver
from vars_ode.robustness import evaluate

FIXED = [name for name in solvers.available() if issubclass(type(solvers.get(name)), solvers.FixedStepSolver)]
NOISE = ("small_gaussian_noise", 2)


class Decay(nn.Module):
    """y' = -y, whose decay is known to exponential methods."""

    linear_rate = 1.0

    def forward(self, t: torch.Tensor, y: torch.Tensor, args: object) -> torch.Tensor:
        return -y


def pictures(count: int = 24) -> TensorDataset:
    return TensorDataset(*(tensor[:count] for tensor in fashion_mnist("test").tensors))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return TINY.build("vars-sd-coupling", seed=0).eval()


# --- names of solves -------------------------------------------------------------------------------------------------


def test_names_of_solves() -> None:
    found = {solve.label: solve.settings for solve in parse_solves("euler@1,2.5 ; rk4@5/2;tsit5@3; nesterov; rk4")}
    assert found == {
        "euler@1": {"solver": solvers.Euler(), "t1": 1.0, "until": False},
        "euler@2.5": {"solver": solvers.Euler(), "t1": 2.5, "until": False},
        "rk4@5/2": {"solver": solvers.RK4(num_steps=2), "t1": 5.0, "until": False},
        "tsit5@3": {"solver": solvers.Tsit5(), "t1": 3.0, "until": False},
        "nesterov": {"solver": solvers.Nesterov(**AT_REST), "until": False},
        "rk4": {"solver": solvers.RK4(), "until": False},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no solve in ''"),
        ("eular@5", "did you mean 'euler'"),
        ("euler@", "cannot read the time ''"),
        ("euler@0", "cannot read the time '0'"),
        ("euler@5/0", "cannot read the time '5/0'"),
        ("euler@-1", "cannot read the time '-1'"),
        ("nesterov@5", "returns the equilibrium"),
        ("tsit5@5/2", "chooses its own steps"),
    ],
)
def test_bad_names_of_solves(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_solves(text)


def test_a_solve_changes_a_copy_only(model: nn.Module) -> None:
    (solve,) = parse_solves("euler@20")
    images = pictures(2).tensors[0]
    with torch.no_grad():
        before = model(images)
        longer = solve.apply(model)
        (layer,) = vars_layers(longer).values()
        assert (layer.solver, layer.t1) == (solvers.Euler(), 20.0)
        assert not torch.allclose(longer(images), before, atol=1e-7)
        assert torch.equal(model(images), before)
    assert longer.state_dict().keys() == model.state_dict().keys()


# --- stability -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIXED)
def test_the_stability_limit_is_where_steps_begin_to_grow(name: str) -> None:
    limit = solvers.get(name).stability_limit
    y0 = torch.ones(1, 1, dtype=torch.float64)

    def end(dt: float) -> float:
        return float(solvers.solve(Decay(), y0, 50 * dt, solvers.get(name, dt=dt)).y1.abs())

    if math.isinf(limit):
        assert end(100.0) <= 1
        return
    assert end(0.99 * limit) < 1
    assert end(1.01 * limit) > 1


def test_known_stability_limits() -> None:
    assert solvers.Euler.tableau.stability_limit == pytest.approx(2, abs=1e-6)
    assert solvers.RK4.tableau.stability_limit == pytest.approx(2.785294, abs=1e-5)


@pytest.mark.parametrize(
    ("label", "unstable"),
    [
        ("euler@5", False),
        ("euler@4/2", False),
        ("euler@5/2", True),
        ("rk4@5/2", False),
        ("rk4@6/2", True),
        ("exponential_euler@9/1", False),
        ("nesterov", False),
        ("tsit5@5", False),
    ],
)
def test_steps_that_theory_calls_too_long(model: nn.Module, label: str, unstable: bool) -> None:
    (solve,) = parse_solves(label)
    (layer,) = vars_layers(solve.apply(model)).values()
    assert solve.unstable_on(layer) is unstable
    layer.configure(rate=0.1)  # no bound, so nothing is known
    assert not solve.unstable_on(layer)


# --- accuracy by solver ----------------------------------------------------------------------------------------------


def test_accuracies_are_those_of_an_evaluation(model: nn.Module) -> None:
    found = analysis.accuracy_by_solver(model, pictures(), "euler@1,5; rk4@5", corruptions=[NOISE], batch_size=7)
    whole = analysis.accuracy_by_solver(model, pictures().tensors, "euler@1,5; rk4@5", corruptions=[NOISE])
    assert [p.by_condition for p in found.points] == [p.by_condition for p in whole.points]
    for point, solve in zip(found.points, parse_solves("euler@1,5; rk4@5"), strict=True):
        rows = evaluate(solve.apply(model), pictures(), ("clean", NOISE[0]), (NOISE[1],))
        assert [row["accuracy"] for row in rows] == [point.accuracy, point.corrupted]
    assert [p.evaluations for p in found.points] == [1, 5, 20]
    assert found.points[0].residual > found.points[1].residual > 0
    assert found.images == 24


def test_the_mean_over_corruptions_and_the_columns(model: nn.Module, tmp_path: Path) -> None:
    conditions = [NOISE, ("small_contrast", 1)]
    found = analysis.accuracy_by_solver(model, pictures(), "euler@5", corruptions=conditions)
    (point,) = found.points
    assert point.corrupted == pytest.approx(sum(point.by_condition[c] for c in conditions) / 2)
    with found.to_csv(tmp_path / "dial.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["small_contrast_1"]) == point.by_condition["small_contrast", 1]
    assert set(row) >= {"solve", "clean", "corrupted", "evaluations", "milliseconds", "residual", "stable", "notes"}


def test_a_model_that_is_differentiated_at_rest_is_solved_to_finite_times_as_well(model: nn.Module) -> None:
    at_rest = with_solver(model, "fixed_point", adjoint="truncated")
    step, rest = (solve.apply(at_rest) for solve in parse_solves("euler@3; nesterov"))
    x = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(step(x), parse_solves("euler@3")[0].apply(model)(x))
    assert {type(layer.adjoint).__name__ for layer in vars_layers(step).values()} == {"Direct"}
    assert {type(layer.adjoint).__name__ for layer in vars_layers(rest).values()} == {"Truncated"}


def test_unstable_steps_are_marked_and_not_drawn(model: nn.Module) -> None:
    found = analysis.accuracy_by_solver(model, pictures(), "euler@1,5; euler@5/2", corruptions=[])
    assert [p.stable for p in found.points] == [True, True, False]
    assert any("euler@5/2 takes longer steps than are stable" in sentence for sentence in found.findings())
    drawn = {text.get_text() for axes in found.plot().axes for text in axes.texts}
    assert drawn == {"euler@1", "euler@5"}


def test_a_solve_that_is_refused_or_diverges_is_told_and_leaves_the_others() -> None:
    monotone = TINY.build("vars-sd-monotone", seed=0)
    found = analysis.accuracy_by_solver(monotone, pictures(), "euler@5; nesterov", corruptions=[NOISE])
    assert math.isfinite(found.points[0].accuracy)
    assert math.isnan(found.points[1].accuracy)
    assert math.isnan(found.points[1].corrupted)
    assert "a rotation is no gradient" in found.points[1].notes[0]
    assert any(sentence.startswith("nesterov: ") for sentence in found.findings())

    factor = TINY.build("vars-d-factor", seed=0)
    with torch.no_grad():
        for layer in vars_layers(factor).values():
            layer.learned.factor.mul_(1e8)  # grows by 1e16 a step: one step is finite, twenty are not
    found = analysis.accuracy_by_solver(factor, pictures(), "euler@1,20", corruptions=[])
    assert [math.isfinite(p.accuracy) for p in found.points] == [True, False]
    assert found.points[1].notes


def test_vars_s_and_several_layers_are_solved_alike() -> None:
    model = timm.create_model("rvt_tiny", attention="vars-s", num_classes=10, img_size=32, in_chans=1, depths=(1, 1))
    images = torch.rand(3, 1, 32, 32)
    found = analysis.accuracy_by_solver(model, (images, torch.tensor([0, 1, 2])), "euler@1,2; fixed_point")
    assert [p.evaluations for p in found.points[:2]] == [1, 2]


def test_bad_input_of_accuracy_by_solver(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="no VARS layer"):
        analysis.accuracy_by_solver(TINY.build("softmax", 0), pictures())
    with pytest.raises(ValueError, match="got no solves"):
        analysis.accuracy_by_solver(model, pictures(), [])
    with pytest.raises(ValueError, match="no images"):
        analysis.accuracy_by_solver(model, (torch.rand(0, 1, 28, 28), torch.zeros(0, dtype=torch.long)))
    with pytest.raises(ValueError, match="label"):
        analysis.accuracy_by_solver(model, (torch.rand(2, 1, 28, 28), torch.tensor([3, 99])))
    with pytest.raises(ValueError, match="small_gaussian_nois"):
        analysis.accuracy_by_solver(model, pictures(), corruptions=[("small_gaussian_nois", 1)])


def test_settings_of_a_solve_may_be_given_as_such(model: nn.Module) -> None:
    sparser = Solve("sparser", {"sparsity": 5.0, "t1": 3.0})
    found = analysis.accuracy_by_solver(model, pictures(), [sparser], corruptions=[])
    assert found.points[0].evaluations == 3


# --- labelled pictures and the command -------------------------------------------------------------------------------


def folder_of_classes(root: Path, classes: int = 10, each: int = 2) -> Path:
    for label in range(classes):
        (root / "val" / f"class{label}").mkdir(parents=True)
        for i in range(each):
            Image.new("RGB", (40, 32), (20 * label, 10 * i, 7)).save(root / "val" / f"class{label}" / f"{i}.png")
    return root


def test_pictures_of_a_folder(tmp_path: Path) -> None:
    data = labelled_pictures(str(folder_of_classes(tmp_path)), Preprocessing((3, 16, 16)))
    image, label = data[3]
    assert (len(data), image.shape, label) == (20, (3, 16, 16), 1)
    assert image[0, 0, 0] == pytest.approx(20 / 255)
    assert [
        labelled_pictures(str(tmp_path), Preprocessing((1, 28, 28), (0,), (1,)), 10)[i][1] for i in range(10)
    ] == list(range(10))


def test_the_command_measures_a_saved_model(model: nn.Module, tmp_path: Path) -> None:
    vars_ode.save_pretrained(model, tmp_path / "saved")
    out = tmp_path / "out"
    arguments = ["dial", str(tmp_path / "saved"), "--solvers", "euler@1,5; euler@5/2", "--images", "20"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(out)])
    assert result.exit_code == 0, result.output
    with (out / "dial.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["solve"] for row in rows] == ["euler@1", "euler@5", "euler@5/2"]
    expected = analysis.accuracy_by_solver(model, pictures(20), "euler@1,5; euler@5/2")
    assert [float(row["clean"]) for row in rows] == [p.accuracy for p in expected.points]
    assert (out / "dial.png").read_bytes().startswith(b"\x89PNG")
    assert "vit_nano_patch4_28 with vars-sd-coupling" in result.output
    again = CliRunner().invoke(
        app, [*arguments, "--data", str(folder_of_classes(tmp_path / "data")), "--out", str(out)]
    )
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--solvers", "eular@5"], "did you mean 'euler'"),
        (["--data", "nowhere"], "there is no folder nowhere"),
        (["--images", "5000"], "there are 1000 embedded test images"),
        (["--corruption", "fogg"], "fogg"),
        (["--severity", "9"], "severity"),
    ],
)
def test_bad_options_of_the_command(model: nn.Module, arguments: list[str], message: str, tmp_path: Path) -> None:
    vars_ode.save_pretrained(model, tmp_path / "saved")
    arguments = ["dial", str(tmp_path / "saved"), "--images", "4", "--out", str(tmp_path / "out"), *arguments]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert message in result.output
    missing = CliRunner().invoke(app, ["dial", str(tmp_path / "none")])
    assert missing.exit_code == 2
    assert "there is no checkpoint" in missing.output
