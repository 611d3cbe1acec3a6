"""Wrong input: a ValueError that says what came, what was expected, what to do."""

import dataclasses
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import solver_cases as cases
import torch
from solver_problems import Pull, Rational, pull
from torch import Tensor

import solvers

GOOD = {"field": Rational(), "y0": torch.ones(2, 3), "t1": 1.0}

BAD = {
    "integer y0": (
        {"y0": torch.ones(2, 3, dtype=torch.long)},
        "y0 must be a floating point tensor, got dtype torch.int64",
    ),
    "complex y0": ({"y0": torch.ones(2, 3, dtype=torch.cfloat)}, "y0 must be a floating point tensor"),
    "list y0": ({"y0": [1.0]}, "y0 must be a floating point tensor, got list"),
    "scalar y0": ({"y0": torch.tensor(1.0)}, r"y0 must be batched.*y0\[None\]"),
    "nan t1": ({"t1": math.nan}, "t1 a number"),
    "nan t0": ({"t0": math.nan}, "t0 must be finite"),
    "infinite t0": ({"t0": -math.inf}, "t0 must be finite"),
    "no t1": ({"t1": None}, "t1 must be a number"),
    "text t1": ({"t1": "1"}, "t1 must be a number"),
    "boolean t1": ({"t1": True}, "t1 must be a number"),
    "list t1": ({"t1": [1.0]}, "t1 must be a number"),
    "two t1": ({"t1": torch.ones(2)}, "t1 must be a number"),
    "infinite t1": ({"t1": math.inf, "solver": "euler"}, "Euler cannot reach t1=inf.*until"),
    "infinite t1 by default": ({"t1": math.inf}, "Tsit5 cannot reach t1=inf.*until"),
    "infinite t1, counted steps": (
        {"t1": math.inf, "solver": solvers.Euler(num_steps=3), "until": solvers.SteadyState()},
        "cannot divide t1=inf; give dt",
    ),
    "unknown solver": ({"solver": "rk5"}, "unknown solver 'rk5'.*choose one of euler, midpoint"),
    "misspelt solver": ({"solver": "eular"}, "did you mean 'euler'"),
    "solver class": ({"solver": solvers.Euler}, "expected the name of a solver or a Solver object"),
    "no solver": ({"solver": None}, "expected the name of a solver"),
    "unknown adjoint": ({"adjoint": "magic"}, "unknown adjoint 'magic'.*direct, checkpointed"),
    "unknown on_failure": ({"on_failure": "ignore"}, "unknown on_failure 'ignore'; choose one of last, raise, nan"),
    "until a number": ({"until": 1e-3}, "until must be a SteadyState"),
    "save_at outside": ({"save_at": torch.tensor([0.0, 1.5])}, r"save_at must lie between t0=0.0 and t1=1.0.*1.5"),
    "save_at before": ({"save_at": torch.tensor([-0.5, 1.0])}, "save_at must lie between"),
    "save_at disordered": ({"save_at": torch.tensor([0.5, 0.2])}, "in the direction of integration"),
    "save_at wrong way": (
        {"save_at": torch.tensor([0.2, 0.5]), "t0": 1.0, "t1": 0.0},
        "in the direction of integration",
    ),
    "save_at nan": ({"save_at": torch.tensor([math.nan])}, "save_at must lie between"),
    "save_at empty": ({"save_at": torch.tensor([])}, "at least one time"),
    "save_at 2-d": ({"save_at": torch.zeros(2, 2)}, "1-d tensor"),
    "save_at text": ({"save_at": "all"}, "save_at must be None, 'steps' or"),
    "save_at object": ({"save_at": object()}, "save_at must be None, 'steps' or"),
    "not a field": ({"field": 3}, "field must be callable.*int"),
    "field without result": ({"field": lambda t, y, args: None}, "must return a tensor of y's shape.*NoneType"),
    "field of another shape": ({"field": lambda t, y, args: y[:, :1]}, r"y's shape, \(2, 3\), but got shape \(2, 1\)"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_solve_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solvers.solve(**{**GOOD, **change})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "num_steps must be a whole number of at least 1, got 0"),
        ({"num_steps": -3}, "num_steps must be a whole number"),
        ({"num_steps": 2.5}, "num_steps must be a whole number"),
        ({"num_steps": True}, "num_steps must be a whole number"),
        ({"dt": 0.0}, "dt must be a finite number above 0"),
        ({"dt": -0.1}, "dt must be a finite number above 0, got -0.1"),
        ({"dt": math.inf}, "dt must be a finite number"),
        ({"dt": math.nan}, "dt must be a finite number"),
        ({"num_steps": 3, "dt": 0.1}, "num_steps=3 and dt=0.1 were both given"),
        ({"steps": 3}, "has no option 'steps'; valid options: num_steps, dt"),
    ],
)
@cases.each(cases.FIXED)
def test_fixed_step_options(case: cases.SolverCase, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solvers.get(case.name, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "max_steps must be a whole number of at least 1"),
        ({"rtol": -1.0}, "rtol must be"),
        ({"atol": math.nan}, "atol must be"),
        ({"rtol": "tight"}, "rtol must be"),
        ({"tolerance": 1.0}, "has no option 'tolerance'; valid options:.*max_steps.*"),
    ],
)
@cases.each([case for case in cases.SOLVERS if case.kind != "fixed"])
def test_tolerance_options(case: cases.SolverCase, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solvers.get(case.name, **options)


@cases.each(cases.ADJOINTS)
def test_adjoint_options(case: cases.AdjointCase) -> None:
    with pytest.raises(ValueError, match="has no option 'magic'"):
        solvers.adjoints.get(case.name, magic=1)


@pytest.mark.parametrize("segments", [0, -1, 1.5])
def test_checkpointed_options(segments: Any) -> None:
    with pytest.raises(ValueError, match="num_segments must be a whole number"):
        solvers.Checkpointed(num_segments=segments)


def test_exponential_euler_needs_the_linear_rate() -> None:
    with pytest.raises(ValueError, match=r"ExponentialEuler needs `linear_rate` of the field.*function does not offer"):
        solvers.solve(lambda t, y, args: -y, torch.ones(1, 1), 1.0, "exponential_euler")


@cases.each(cases.SOLVERS)
def test_lookups(case: cases.SolverCase) -> None:
    built = solvers.get(case.name)
    assert solvers.get(built) is built
    assert built == type(built)()
    assert hash(built) == hash(type(built)())
    option = next(f for f in dataclasses.fields(built) if f.init)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(built, option.name, 3)


def test_options_replace_those_of_an_object() -> None:
    assert solvers.get(solvers.RK4(num_steps=3), num_steps=5) == solvers.RK4(num_steps=5)
    with pytest.raises(ValueError, match="'RK4' has no option 'rtol'"):
        solvers.get(solvers.RK4(), rtol=1.0)


def test_aliases() -> None:
    assert solvers.get("ista", max_steps=3) == solvers.FixedPoint(max_steps=3)
    assert solvers.get("fista") == solvers.Nesterov()
    assert "ista" not in solvers.available()


@dataclasses.dataclass(frozen=True)
class _Own(solvers.Euler):
    """A user's solver."""


def test_registering() -> None:
    registry: solvers.Registry[solvers.Solver] = solvers.Registry("solver", solvers.Solver)  # type: ignore[type-abstract]
    registry.register("own", _Own, aliases=("mine",))
    assert registry.available() == ("own",)
    assert registry.get("mine", num_steps=2) == _Own(num_steps=2)
    for name in ("own", "mine"):
        with pytest.raises(ValueError, match=f"the solver name '{name}' is taken by _Own.*overwrite=True"):
            registry.register(name, _Own)
    for wrong in (dict, _Own(), lambda: None):
        with pytest.raises(ValueError, match="expected a dataclass derived from Solver"):
            registry.register("other", wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="is taken"):
        solvers.register("euler", _Own)


def test_replacing_a_registered_class() -> None:
    registry: solvers.Registry[solvers.Solver] = solvers.Registry("solver", solvers.Solver)  # type: ignore[type-abstract]
    registry.register("own", _Own, aliases=("mine",))
    registry.register("other", solvers.Heun)
    registry.register("own", solvers.RK4, overwrite=True)
    assert registry.available() == ("own", "other")
    assert registry.get("own") == registry.get("mine") == solvers.RK4()
    registry.register("mine", _Own, overwrite=True)  # an alias becomes a name
    assert registry.available() == ("own", "other", "mine")
    assert (registry.get("own"), registry.get("mine")) == (solvers.RK4(), _Own())
    registry.register("another", solvers.Euler, aliases=("own",), overwrite=True)  # and a name an alias
    assert registry.available() == ("other", "mine", "another")
    assert registry.get("own") == solvers.Euler()
    registry.register("new", _Own, overwrite=True)
    assert registry.get("new") == _Own()
    with pytest.raises(ValueError, match="expected a dataclass derived from Solver"):
        registry.register("own", dict, overwrite=True)  # type: ignore[arg-type]


def test_one_of() -> None:
    choices = ("soft", "gelu")
    assert all(solvers.checks.one_of("threshold", choice, iter(choices)) is None for choice in choices)
    with pytest.raises(
        ValueError, match=r"^unknown threshold 'sofd' \(did you mean 'soft'\?\); choose one of soft, gelu$"
    ):
        solvers.checks.one_of("threshold", "sofd", iter(choices))
    for value in ("xyz", None, 3, ["soft"], torch.ones(2)):
        with pytest.raises(ValueError, match=r"^unknown threshold [^?]*; choose one of soft, gelu$"):
            solvers.checks.one_of("threshold", value, choices)


def test_a_field_may_be_any_callable() -> None:
    field, y0, args = pull()

    class Method:
        def rate(self, t: Tensor, y: Tensor, args: Any) -> Tensor:
            return field(t, y, args)

    solver = solvers.RK4(num_steps=2)
    expected = solvers.solve(field, y0, 1.0, solver, args).y1
    assert solvers.solve(Method().rate, y0, 1.0, solver, args).y1.equal(expected)
    assert solvers.solve(Pull.forward.__get__(field), y0, 1.0, solver, args).y1.equal(expected)


def test_a_tensor_may_be_a_horizon() -> None:
    assert solvers.solve(Rational(), torch.ones(2, 3), torch.tensor(1.0)).success.all()


def test_importing_solvers_loads_nothing_of_vars_ode() -> None:
    """In a fresh interpreter, with every module of the package and a solve, for what is imported late."""
    code = (
        "import importlib, pkgutil, sys, torch, solvers\n"
        "names = [module.name for module in pkgutil.walk_packages(solvers.__path__, 'solvers.')]\n"
        "[importlib.import_module(name) for name in names]\n"
        "solvers.solve(lambda t, y, args: -y, torch.ones(1), 1.0)\n"
        "print(len(names) > 30, [name for name in sys.modules if name.split('.')[0] == 'vars_ode'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "True []"


def test_the_package_under_test_is_not_this_folder() -> None:
    assert solvers.__file__ is not None
    assert not Path(solvers.__file__).is_relative_to(Path(__file__).parents[1])
