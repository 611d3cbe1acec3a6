"""What a solve cannot give is a failing status, a warning or one of our errors, never a silent infinity."""

from typing import Any

import pytest
import torch
from torch import Tensor

import solvers


def growth(t: Tensor, y: Tensor, args: Tensor | None) -> Tensor:
    """y' = y, or args y."""
    return y if args is None else args * y


def test_an_answer_beyond_float16_is_not_finite_and_says_so() -> None:
    y0 = torch.tensor([[1.0], [1e-5]], dtype=torch.float16)
    with pytest.warns(solvers.SolverWarning, match="NONFINITE"):
        solution = solvers.solve(growth, y0, 20.0, solvers.RK4(num_steps=40))
    assert solution.status.tolist() == [solvers.Status.NONFINITE, solvers.Status.SUCCESS]
    assert solution.y1.isfinite().flatten().tolist() == [False, True]


def test_an_answer_beyond_float32_of_a_solve_in_float64_is_not_finite() -> None:
    args = torch.ones(1, 1, dtype=torch.float64)
    with pytest.raises(solvers.SolverError, match=r"1 x NONFINITE.*type of y0 is too narrow"):
        solvers.solve(growth, torch.ones(1, 1), 200.0, solvers.RK4(num_steps=400), args, on_failure="raise")


def test_a_saved_state_beyond_the_type_counts_too() -> None:
    def there_and_back(t: Tensor, y: Tensor, args: None) -> Tensor:
        return torch.where(t < 10, y, -y)

    solution = solvers.solve(
        there_and_back,
        torch.tensor([[4.0], [1e-2]], dtype=torch.float16),
        20.0,
        solvers.RK4(num_steps=200),
        save_at=[10.0, 20.0],
        on_failure="nan",
    )
    assert solution.status.tolist() == [solvers.Status.NONFINITE, solvers.Status.SUCCESS]
    assert solution.ys[:, 0].isnan().all()
    assert solution.ys[:, 1].isfinite().all()


def decay(t: Tensor, y: Tensor, args: Tensor | None) -> Tensor:
    """y' = -y, or args - y."""
    return -y if args is None else args - y


decay.natural_step = decay.linear_rate = 1.0  # type: ignore[attr-defined]
STEPPING = [solvers.RK4(num_steps=3), solvers.Euler(num_steps=3), solvers.ExponentialEuler(num_steps=3)]
LIBRARIES = [
    ("dopri5", "torchode"),
    ("tsit5", "torchode"),
    *((n, "torchdiffeq") for n in ("bosh3", "dopri5", "dopri8")),
]
CONTROLLED = [solvers.get(name, max_steps=20) for name in ("tsit5", "dopri8", "scipy")]
CONTROLLED += [solvers.get(name, backend=backend, max_steps=20) for name, backend in LIBRARIES]


@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1e39), (0.0, 1e300), (1e300, 0.0), (-3e38, 3e38), (1e39, 1e39 + 1e30)])
@pytest.mark.parametrize("solver", [*STEPPING, *CONTROLLED], ids=str)
def test_times_beyond_the_type_are_refused(solver: solvers.Solver, t0: float, t1: float) -> None:
    with pytest.raises(ValueError, match=r"the interval from t0=.* is beyond what torch.float32.*rescale time"):
        solvers.solve(decay, torch.ones(1, 1), t1, solver, t0=t0)


@pytest.mark.filterwarnings("ignore::solvers.SolverWarning")
@pytest.mark.parametrize("save_at", [None, "steps"])
@pytest.mark.parametrize("t1", [3e38, -3e38, 1e20])
@pytest.mark.parametrize("solver", [*STEPPING, *CONTROLLED], ids=str)
def test_horizons_that_the_type_can_hold(solver: solvers.Solver, t1: float, save_at: str | None) -> None:
    solution = solvers.solve(decay, torch.ones(1, 1), t1, solver, save_at=save_at)  # type: ignore[arg-type]
    assert solution.ts.isfinite().all()
    assert not solution.success.any() or solution.y1.isfinite().all()


@pytest.mark.parametrize(("name", "backend"), [*LIBRARIES, *((name, "native") for name in ("tsit5", "dopri8"))])
@pytest.mark.parametrize("t1", [3e38, -3e38])
@pytest.mark.parametrize("save_at", [None, "steps", "inside"])
def test_an_answer_beyond_the_type_of_error_control(name: str, backend: str, t1: float, save_at: str | None) -> None:
    """With tolerances so wide that every step passes, and an infinite state has an error of 0 relative to itself."""
    solver = solvers.get(name, backend=backend, rtol=10.0, atol=1e30, max_steps=100)
    saved: Any = [0.0, 0.5 * t1, t1] if save_at == "inside" else save_at
    with pytest.warns(solvers.SolverWarning, match="NONFINITE|MAX_STEPS"):
        solution = solvers.solve(lambda t, y, args: t * torch.ones_like(y), torch.ones(2, 2), t1, solver, save_at=saved)
    assert not solution.success.any()


@pytest.mark.parametrize(("name", "backend"), [*LIBRARIES, ("tsit5", "native"), ("dopri8", "native")])
def test_states_that_are_saved_inside_a_step_are_finite_or_a_failure(name: str, backend: str) -> None:
    """Interpolating polynomials have coefficients many times as large as the states at both ends."""
    solver = solvers.get(name, backend=backend, max_steps=100)
    y0 = torch.tensor([[3e38], [1.0]])
    solution = solvers.solve(lambda t, y, args: 1 + 0 * y, y0, 1e-45, solver, save_at=[1e-46, 5e-46], on_failure="nan")
    assert solution.success[1]
    assert solution.ys[:, solution.success].isfinite().all()


def test_a_saved_state_takes_one_step_of_torchdiffeq_whatever_its_error() -> None:
    """Rounding makes an error of any step to them a hundred times the tolerance, while the whole step had none."""
    solver = solvers.Dopri5(backend="torchdiffeq", rtol=0.0, atol=1e-30, max_steps=50)
    times = [1e8, 1e8 + 0.1, 1e8 + 0.5, 1e8 + 1]
    solution = solvers.solve(steep, torch.ones(2, 2), times[-1], solver, t0=times[0], save_at=times)
    assert solution.success.all()
    torch.testing.assert_close(solution.ys[:, 0, 0], torch.tensor([1.0, 1e29, 5e29, 1e30]), rtol=1e-5, atol=0.0)


def steep(t: Tensor, y: Tensor, args: None) -> Tensor:
    return 1e30 * torch.ones_like(y)


def test_an_open_end_needs_a_moderate_start() -> None:
    with pytest.raises(ValueError, match="beyond what"):
        solvers.solve(decay, torch.ones(1, 1), t0=1e35, until=solvers.SteadyState())


@pytest.mark.parametrize("t1", [1e39, 1e300])
def test_relaxation_ignores_the_horizon(t1: float) -> None:
    assert solvers.solve(decay, torch.ones(1, 1), t1, "nesterov").success.all()
    with pytest.raises(ValueError, match="beyond what"):
        solvers.solve(decay, torch.ones(1, 1), t1, "nesterov", save_at=[t1])


@pytest.mark.parametrize(
    "solver",
    [solvers.Euler(num_steps=10**9), solvers.RK4(dt=1e-12), solvers.FixedPoint(max_steps=10**12), "euler"],
    ids=str,
)
def test_more_steps_than_memory_can_hold_are_refused(solver: solvers.Solver | str) -> None:
    with pytest.raises(ValueError, match=r"would take 1e\+\d+ steps, and at most 10,000,000 are possible"):
        solvers.solve(decay, torch.ones(1, 1), 1e8 if solver == "euler" else 1.0, solver)


def test_the_implicit_gradient_of_a_field_that_does_not_depend_on_the_state() -> None:
    args = torch.zeros(2, 3, requires_grad=True)
    solution = solvers.solve(
        lambda t, y, args: 0 * args, torch.ones(2, 3), args=args, solver="anderson", adjoint="implicit"
    )
    with pytest.warns(solvers.SolverWarning, match="linear system of the implicit gradient.*2 of 2 samples"):
        solution.y1.sum().backward()
    assert args.grad is not None
    assert (args.grad == 0).all()


def test_the_implicit_gradient_of_a_solve_that_starts_at_its_equilibrium() -> None:
    y0, args = (torch.full((2, 3), 0.5, requires_grad=True) for _ in range(2))
    solvers.solve(decay, y0, args=args, solver="fixed_point", adjoint="implicit").y1.sum().backward()
    assert y0.grad is not None
    assert args.grad is not None
    assert (y0.grad == 0).all()
    torch.testing.assert_close(args.grad, torch.ones(2, 3))


class Scaled(torch.nn.Module):
    """y' = args - w y"""

    natural_step = linear_rate = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(3))

    def forward(self, t: Tensor, y: Tensor, args: dict[str, Tensor]) -> Tensor:
        return args["drive"] - self.w * y


@pytest.mark.parametrize("solver", ["euler", "fixed_point", "nesterov", "anderson", "tsit5", "dopri8"])
@pytest.mark.parametrize("adjoint", ["direct", "checkpointed", "implicit", "truncated"])
def test_without_any_step_gradients_are_zero_and_not_none(solver: str, adjoint: str) -> None:
    field, drive = Scaled(), torch.full((2, 3), 0.25, requires_grad=True)
    y0 = torch.full((2, 3), 0.25, requires_grad=True)
    until = solvers.SteadyState()
    solution = solvers.solve(field, y0, 5.0, solver, {"drive": drive}, adjoint=adjoint, until=until)
    assert (solution.stats["num_steps"] == 0).all()
    solution.y1.sum().backward()
    assert all(leaf.grad is not None for leaf in (y0, drive, field.w))
    if adjoint in ("direct", "checkpointed"):
        assert drive.grad is not None
        assert (drive.grad == 0).all()
        assert field.w.grad is not None
        assert (field.w.grad == 0).all()


class Nested(torch.nn.Module):
    """Solves an inner equilibrium from a state that needs a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.full((3,), 0.5))

    def forward(self, t: Tensor, y: Tensor, args: Tensor) -> Tensor:
        inner = solvers.solve(decay, 0.1 * y, solver="fixed_point", args=self.w * y + args, adjoint="implicit")
        return inner.y1 - y


def test_the_continuous_adjoint_around_an_implicit_one() -> None:
    gradients = {}
    for adjoint in ("direct", "continuous"):
        field, args = Nested().double(), torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
        y0 = torch.ones(2, 3, dtype=torch.float64)
        solution = solvers.solve(field, y0, 1.0, solvers.RK4(num_steps=30), args, adjoint=adjoint)
        gradients[adjoint] = torch.autograd.grad(solution.y1.sum(), [args, field.w])
    torch.testing.assert_close(gradients["continuous"], gradients["direct"], rtol=1e-4, atol=1e-6)
