"""The continuous adjoint: accuracy, what it keeps, what it refuses."""

import math
from typing import Any

import pytest
import torch
from solver_problems import F64, Linear, Rational, pull
from torch import Tensor, nn

import solvers
from solvers import Continuous, SolverError, SolverWarning, SteadyState

TIGHT = solvers.Dopri5(rtol=1e-10, atol=1e-10)
EXACT = Continuous(rtol=1e-9, atol=1e-9)


def linear_gradients(adjoint: Any, solver: Any = TIGHT, **options: Any) -> tuple[Tensor, ...]:
    y0, a = (part.requires_grad_() for part in Linear.problem())
    solution = solvers.solve(Linear(), y0, 2.0, solver, a, adjoint=adjoint, **options)
    loss = (torch.linspace(1, 2, solution.ys.numel(), dtype=F64).view_as(solution.ys) * solution.ys).sum()
    return torch.autograd.grad(loss + solution.y1.square().sum(), (y0, a))


def distance(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> float:
    first, second = (torch.cat([part.flatten() for part in parts]) for parts in (one, other))
    return float((first - second).norm() / second.norm())


def test_error_falls_with_the_tolerance() -> None:
    y0, a = (part.requires_grad_() for part in Linear.problem())
    exact = torch.autograd.grad(Linear.exact(2.0, y0, a).square().sum(), (y0, a))
    errors = []
    for tolerance in (1e-3, 1e-5, 1e-7, 1e-9):
        y1 = solvers.solve(Linear(), y0, 2.0, TIGHT, a, adjoint=Continuous(rtol=tolerance, atol=tolerance)).y1
        errors.append(distance(torch.autograd.grad(y1.square().sum(), (y0, a)), exact))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-7


@pytest.mark.parametrize("method", ["bosh3", "dopri5", "dopri8", "adaptive_heun"])
def test_methods_of_the_backward_solve(method: str) -> None:
    got = linear_gradients(Continuous(rtol=1e-5, atol=1e-5, method=method))
    assert distance(got, linear_gradients("direct")) < 1e-3


@pytest.mark.parametrize(
    ("solver", "tolerance"),
    [
        (solvers.Euler(num_steps=2000), 5e-3),
        (solvers.RK4(num_steps=30), 1e-4),
        (solvers.Tsit5(rtol=1e-9, atol=1e-9), 1e-6),
        (solvers.Dopri8(rtol=1e-9, atol=1e-9), 1e-6),
        (solvers.Scipy("DOP853"), 1e-6),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize(
    "save_at", [None, "steps", (0.0, 0.3, 0.3, 1.9), (0.5,), (2.0, 2.0)], ids=["end", "steps", "times", "one", "twice"]
)
def test_any_forward_solver_and_any_saving(solver: Any, tolerance: float, save_at: Any) -> None:
    if isinstance(solver, solvers.Euler) and save_at == "steps":
        solver = solvers.Euler(num_steps=50)
        tolerance = 0.1
    times = torch.tensor(save_at, dtype=F64) if isinstance(save_at, tuple) else save_at
    got = linear_gradients(EXACT, solver, save_at=times)
    y0, a = (part.requires_grad_() for part in Linear.problem())
    with torch.no_grad():
        saved = solvers.solve(Linear(), y0, 2.0, solver, a, save_at=times)
    ts = saved.ts if saved.ts.ndim == 2 else saved.ts[:, None].expand(-1, len(y0))
    ys = torch.stack(
        [torch.cat([Linear.exact(float(t), y0[i : i + 1], a[i : i + 1]) for i, t in enumerate(row)]) for row in ts]
    )
    loss = (torch.linspace(1, 2, ys.numel(), dtype=F64).view_as(ys) * ys).sum() + Linear.exact(
        2.0, y0, a
    ).square().sum()
    assert distance(got, torch.autograd.grad(loss, (y0, a))) < tolerance


def test_backwards_in_time() -> None:
    y0 = torch.tensor([[0.2, 0.1]], dtype=F64, requires_grad=True)
    times = torch.tensor([2.0, 1.5, 1.0], dtype=F64)
    gradients = []
    for adjoint in (EXACT, "direct"):
        ys = solvers.solve(Rational(), y0, 1.0, TIGHT, t0=2.0, adjoint=adjoint, save_at=times).ys
        gradients += torch.autograd.grad((ys * torch.arange(1.0, 4.0, dtype=F64)[:, None, None]).sum(), y0)
    assert gradients[0].allclose(gradients[1], rtol=1e-7)


def test_no_time_at_all() -> None:
    y0 = torch.ones(1, 1, requires_grad=True)
    solution = solvers.solve(Rational(), y0, 0.7, "dopri5", t0=0.7, adjoint="continuous")
    (gradient,) = torch.autograd.grad(3 * solution.y1.sum() + solution.ys.sum(), y0)
    assert float(gradient) == 4.0


def test_args_with_a_common_ancestor_count_once_each() -> None:
    """dy/dt = -p y + q with p = 2 w and q = w^2, both from one w."""
    w = torch.tensor(0.8, dtype=F64, requires_grad=True)
    y0 = torch.tensor([[1.5]], dtype=F64)

    def field(t: Tensor, y: Tensor, args: tuple[Tensor, dict[str, Tensor]]) -> Tensor:
        return -args[0] * y + args[1]["q"]

    gradients = []
    for adjoint in (EXACT, "direct"):
        y1 = solvers.solve(field, y0, 1.3, TIGHT, (2 * w, {"q": w**2}), adjoint=adjoint).y1
        gradients += torch.autograd.grad(y1.sum(), w)
    assert gradients[0].allclose(gradients[1], rtol=1e-7)


def test_one_tensor_twice_and_one_shared_with_a_parameter() -> None:
    class Shift(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([0.3, -0.2], dtype=F64))

        def forward(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
            return torch.sin(args[0] * y) + args[1] * self.weight + args[2]

    field = Shift()
    y0 = torch.tensor([[0.1, 0.2]], dtype=F64)
    x = torch.tensor([0.7, 0.5], dtype=F64, requires_grad=True)
    gradients = []
    for adjoint in (EXACT, "direct"):
        y1 = solvers.solve(field, y0 * x, 1.0, TIGHT, (x, x, field.weight), adjoint=adjoint).y1
        gradients.append(torch.autograd.grad(y1.sum(), (x, field.weight)))
    assert distance(gradients[0], gradients[1]) < 1e-7


def test_integers_and_tensors_without_gradient_pass_through() -> None:
    scale = torch.tensor(2.0, dtype=F64, requires_grad=True)
    fixed, index = torch.ones(2, dtype=F64), torch.tensor([1, 0])

    def field(t: Tensor, y: Tensor, args: dict[str, Any]) -> Tensor:
        assert args["name"] == "swap"
        return -args["scale"] * y[:, args["index"]] * args["fixed"]

    args = {"scale": scale, "fixed": fixed, "index": index, "name": "swap"}
    y1 = solvers.solve(field, torch.ones(1, 2, dtype=F64), 1.0, TIGHT, args, adjoint=EXACT).y1
    y1.sum().backward()
    assert float(scale.grad) == pytest.approx(-2 * math.exp(-2.0), rel=1e-6)  # type: ignore[arg-type]
    assert fixed.grad is None


def test_the_scale_of_the_loss_does_not_matter() -> None:
    gradients = []
    for scale in (1e-8, 1.0, 1e8):
        y0, a = (part.requires_grad_() for part in Linear.problem())
        y1 = solvers.solve(Linear(), y0, 2.0, TIGHT, a, adjoint=Continuous()).y1
        gradients.append([part / scale for part in torch.autograd.grad(scale * y1.sum(), (y0, a))])
    for other in (gradients[0], gradients[2]):
        assert distance(tuple(other), tuple(gradients[1])) < 1e-9


def test_a_tensor_that_has_no_influence_gets_zero() -> None:
    unused = torch.ones(2, dtype=F64, requires_grad=True)
    y0 = torch.ones(1, 1, dtype=F64, requires_grad=True)
    y1 = solvers.solve(lambda t, y, args: t.expand_as(y), y0, 1.0, TIGHT, unused, adjoint=EXACT).y1
    gradients = torch.autograd.grad(y1.sum(), (y0, unused))
    assert float(y1.detach()) == pytest.approx(1.5)
    assert float(gradients[0]) == pytest.approx(1.0)
    assert gradients[1].tolist() == [0.0, 0.0]


def saved_bytes(steps: int, adjoint: str) -> int:
    """Bytes that autograd keeps between the forward and the backward pass."""
    kept = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.nbytes)
        return tensor

    y0, a = (part.requires_grad_() for part in Linear.problem(batch=4, n=8))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        solvers.solve(Linear(), y0, 2.0, solvers.RK4(num_steps=steps), a, adjoint=adjoint)
    return sum(kept)


def test_memory_does_not_grow_with_the_steps() -> None:
    assert saved_bytes(5, "continuous") == saved_bytes(320, "continuous")
    assert saved_bytes(320, "direct") > 20 * saved_bytes(320, "continuous")


def test_a_contractive_field_gets_a_warning_in_words() -> None:
    field, y0, args = pull()
    with pytest.warns(SolverWarning, match=r"Pull is contractive.*backwards.*'direct' or 'checkpointed'") as record:
        solvers.solve(field, y0, 1.0, "dopri5", args, adjoint="continuous")
    assert len(record) == 1
    assert record[0].filename == __file__


@pytest.mark.filterwarnings("error")
def test_no_warning_without_need() -> None:
    field, y0, args = pull()
    with torch.no_grad():
        solvers.solve(field, y0, 1.0, "dopri5", args, adjoint="continuous")
    linear_gradients(EXACT)


def test_a_contractive_flow_ruins_the_gradient() -> None:
    """Why there is a warning: the error grows like exp(rate T), while what it is an error of decays slowly."""
    turn = torch.tensor([[1.0, -1.0], [1.0, 1.0]], dtype=F64) / 2**0.5
    a = turn @ torch.diag(torch.tensor([0.05, 6.0], dtype=F64)) @ turn.T

    def field(t: Tensor, y: Tensor, b: Tensor) -> Tensor:
        return torch.tanh(b - y @ a)

    errors = []
    for horizon in (1.0, 5.0, 8.0):
        gradients = []
        for adjoint in (Continuous(), "direct"):
            b = torch.tensor([[0.9, 0.3]], dtype=F64, requires_grad=True)
            y1 = solvers.solve(field, torch.zeros(1, 2, dtype=F64), horizon, TIGHT, b, adjoint=adjoint).y1
            gradients.append(torch.autograd.grad(y1.square().sum(), b))
        errors.append(distance(gradients[0], gradients[1]))
    assert errors[0] < 1e-4
    assert errors[2] > 100 * errors[0]


@pytest.mark.parametrize(
    "options",
    [
        {"solver": "fixed_point", "t1": 1.0},
        {"solver": "nesterov"},
        {"solver": "dopri5", "t1": math.inf, "until": SteadyState()},
        {"solver": "dopri5", "t1": 1.0, "until": SteadyState()},
        {"solver": solvers.Euler(dt=1.0), "t1": math.inf, "until": SteadyState()},
    ],
    ids=str,
)
def test_solves_without_a_known_end_are_refused(options: dict[str, Any]) -> None:
    y0 = torch.ones(1, 1, requires_grad=True)
    with pytest.raises(ValueError, match=r"known t1.*'implicit'.*'direct' or 'checkpointed'.*without `until`"):
        solvers.solve(lambda t, y, args: -y, y0, adjoint="continuous", **options)


def test_second_derivatives_are_refused() -> None:
    y0 = torch.ones(1, 1, requires_grad=True)
    y1 = solvers.solve(Rational(), y0, 1.0, "dopri5", adjoint="continuous").y1
    with pytest.raises(RuntimeError, match=r"no second derivative.*create_graph=True; use adjoint='direct'"):
        torch.autograd.grad(y1.sum(), y0, create_graph=True)


@pytest.mark.parametrize("upstream", [False, True])
def test_a_tensor_by_the_back_door_is_refused(upstream: bool) -> None:
    leaf = torch.ones(3, requires_grad=True)
    weight = 2 * leaf if upstream else leaf
    field = lambda t, y, args: -weight * y  # noqa: E731
    y0 = torch.ones(1, 3, requires_grad=True)
    with pytest.raises(ValueError, match=r"tensor of shape \(3,\).*neither in `args`.*lose that gradient"):
        solvers.solve(field, y0, 1.0, "dopri5", adjoint="continuous")


def test_samples_that_failed_have_no_gradient() -> None:
    def field(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
        return torch.where(y < 0.5, math.nan, -k * y)

    k = torch.tensor(1.0, dtype=F64, requires_grad=True)
    y0 = torch.tensor([[1.0], [100.0]], dtype=F64, requires_grad=True)
    with pytest.warns(SolverWarning, match="NONFINITE"):
        solution = solvers.solve(field, y0, 2.0, TIGHT, k, adjoint=EXACT)
    with pytest.raises(SolverError, match=r"did not reach t1.*\n.*NONFINITE"):
        torch.autograd.grad(solution.y1.sum(), y0, retain_graph=True)
    finite = torch.autograd.grad(solution.y1[1].sum(), (y0, k))
    assert finite[0].allclose(torch.tensor([[0.0], [math.exp(-2.0)]], dtype=F64), rtol=1e-6)
    assert float(finite[1]) == pytest.approx(-200 * math.exp(-2.0), rel=1e-6)


def test_a_backward_solve_that_fails_says_so() -> None:
    y0 = torch.tensor([[1.0]], requires_grad=True)
    y1 = solvers.solve(lambda t, y, args: -500 * y, y0, 1.0, "dopri5", adjoint=Continuous(max_steps=20)).y1
    with pytest.raises(SolverError, match=r"backward solve of the continuous adjoint failed.*'checkpointed'"):
        torch.autograd.grad(y1.sum(), y0)


def test_changing_a_tensor_before_the_backward_pass_is_an_error() -> None:
    a = torch.ones(1, dtype=F64, requires_grad=True)
    y1 = solvers.solve(lambda t, y, args: -args * y, torch.ones(1, 1, dtype=F64), 1.0, TIGHT, a, adjoint=EXACT).y1
    with torch.no_grad():
        a.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y1.sum().backward()


@pytest.mark.parametrize("options", [{"rtol": 0, "atol": 0}, {"rtol": -1}, {"max_steps": 0}, {"method": "euler"}])
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match=r"both 0|rtol must be|max_steps must be|unknown method of the backward solve 'euler'"
    ):
        Continuous(**options)
