"""What a solve cannot give is a failing status, a warning or one of our errors, never a silent infinity."""

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
