"""A field's `iterate` and `iteration`: the same answers, gradients and statistics as by its value alone."""

from typing import Any

import pytest
import torch
from solver_problems import F64
from torch import Tensor, nn

import solvers
from solvers import SteadyState


class Gradient:
    """y' = eta (b - H y), the gradient flow of a quadratic energy; args = (eta, b, H)."""

    natural_step = 1.0

    def __call__(self, t: Any, y: Tensor, args: Any) -> Tensor:
        rate, drive, matrix = args
        return rate * (drive - (matrix @ y[..., None])[..., 0])

    def resolvent(self, v: Tensor, rho: float, args: Any) -> Tensor:
        _, drive, matrix = args
        return torch.linalg.solve(matrix + rho * torch.eye(v.shape[-1], dtype=v.dtype), drive + rho * v)

    def prox(self, v: Tensor, step: float, args: Any) -> Tensor:
        return v.clone()


class Iterating(Gradient):
    """The same with an `iterate`, whose calls are counted."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, t: Any, y: Tensor, args: Any) -> Tensor:
        return super().__call__(t, y, args)

    def iterate(self, y: Tensor, args: Any) -> Tensor:
        self.calls += 1
        return y + super().__call__(None, y, args)


class Prepared(Iterating):
    def iteration(self, args: Any) -> Any:
        return lambda y: self.iterate(y, args)


def problem() -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Three samples of very different speed, so that they stop at different steps."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(3, 6, 6, generator=generator, dtype=F64)
    matrix = root @ root.mT / 6 + torch.tensor([0.05, 0.3, 2.0], dtype=F64)[:, None, None] * torch.eye(6, dtype=F64)
    rate = 1 / torch.linalg.matrix_norm(matrix, 2)[:, None]
    y0, drive = torch.randn(2, 3, 6, generator=generator, dtype=F64)
    return y0, (rate, drive, matrix)


RULE = SteadyState(rtol=0, atol=1e-6)
SOLVERS: dict[str, tuple[solvers.Solver, float, SteadyState | None]] = {
    "euler": (solvers.Euler(), 4.0, None),
    "euler until": (solvers.Euler(), 500.0, RULE),
    "euler half a step": (solvers.Euler(dt=0.5), 4.0, None),
    "rk4": (solvers.RK4(), 4.0, None),
    **{
        name: (solvers.get(name, max_steps=2000, rtol=0.0, atol=1e-6), 0.0, None)
        for name in ("fixed_point", "nesterov", "anderson", "douglas_rachford")
    },
    "fixed_point given": (solvers.FixedPoint(max_steps=9, rtol=0.0, atol=0.0), 0.0, None),
    "nesterov given": (solvers.Nesterov(max_steps=9, rtol=0.0, atol=0.0), 0.0, None),
}
each_solver = pytest.mark.parametrize("name", SOLVERS)
each_field = pytest.mark.parametrize("kind", [Iterating, Prepared])


def solve(field: Any, name: str, y0: Tensor, args: Any, **options: Any) -> solvers.Solution:
    solver, t1, until = SOLVERS[name]
    return solvers.solve(field, y0, t1, solver, args, until=until, **options)


@each_field
@each_solver
@pytest.mark.parametrize("save_at", [None, "steps"])
def test_answers_are_those_of_the_value(name: str, kind: Any, save_at: Any) -> None:
    y0, args = problem()
    untouched = [tensor.clone() for tensor in (y0, *args)]
    field = kind()
    with torch.no_grad():
        expected = solve(Gradient(), name, y0, args, save_at=save_at)
        got = solve(field, name, y0, args, save_at=save_at)
    assert (field.calls > 0) == (name not in ("euler half a step", "rk4"))
    assert got.y1.allclose(expected.y1, rtol=1e-9, atol=1e-12)
    assert got.ys.allclose(expected.ys, rtol=1e-9, atol=1e-12)
    assert got.status.equal(expected.status)
    for key in ("num_steps", "num_field_evals"):
        assert got.stats[key].equal(expected.stats[key])
    assert got.stats["residual"].allclose(expected.stats["residual"], rtol=1e-5, atol=1e-14)
    assert all(new.equal(old) for new, old in zip((y0, *args), untouched, strict=True))


@each_field
@each_solver
def test_gradients_are_those_of_the_value(name: str, kind: Any) -> None:
    gradients = []
    for field in (Gradient(), kind()):
        y0, args = problem()
        leaves = [y0.requires_grad_(), *(tensor.requires_grad_() for tensor in args)]
        y1 = solve(field, name, y0, args).y1
        first = torch.autograd.grad(y1.square().sum(), leaves, create_graph=True, materialize_grads=True)
        second = torch.autograd.grad(first[2].square().sum(), leaves, materialize_grads=True)
        gradients.append([gradient.detach() for gradient in (*first, *second)])
    for got, expected in zip(*gradients, strict=True):
        assert got.allclose(expected, rtol=1e-7, atol=1e-9 * float(expected.abs().max()))


@each_field
@each_solver
def test_a_sample_is_solved_as_if_alone_with_and_without_a_graph(name: str, kind: Any) -> None:
    """Without one the samples that have stopped are carried on, and what becomes of them is dropped."""
    y0, args = problem()
    with torch.no_grad():
        together = solve(kind(), name, y0, args)
        for i in range(3):
            alone = solve(kind(), name, y0[i : i + 1], tuple(tensor[i : i + 1] for tensor in args))
            assert alone.y1[0].allclose(together.y1[i], rtol=1e-12, atol=1e-14)
            assert alone.stats["num_steps"][0] == together.stats["num_steps"][i]
    recorded = solve(kind(), name, y0.requires_grad_(), args)
    assert recorded.y1.allclose(together.y1, rtol=1e-12, atol=1e-14)
    assert recorded.stats["num_field_evals"].equal(together.stats["num_field_evals"])
    if name in ("nesterov", "euler until"):
        assert len(set(together.stats["num_steps"].tolist())) == 3


def test_what_happens_to_a_sample_after_it_has_stopped_is_dropped() -> None:
    """y' = 1e-9 near 0, where it is steady, and beyond it runs away to infinity within the steps of its batch mate."""

    def runaway(t: Any, y: Tensor, args: Any) -> Tensor:
        return torch.where(args > 0, 1e-9 + 1e10 * y * y.abs().clamp_min(1e-9) * 1e9, -0.1 * y)

    y0 = torch.tensor([[0.0], [1.0]], dtype=F64)
    kind = torch.tensor([[1.0], [0.0]], dtype=F64)
    with torch.no_grad():
        solution = solvers.solve(runaway, y0, solver=solvers.FixedPoint(rtol=0, atol=1e-8), args=kind)
    assert solution.success.all()
    assert solution.y1[0].item() == 0.0
    assert solution.stats["num_steps"].tolist()[0] == 0
    assert solution.stats["num_steps"].tolist()[1] > 100


def test_an_iterate_that_returns_what_it_holds_is_not_written_to() -> None:
    class Constant:
        def __call__(self, t: Any, y: Tensor, args: Tensor) -> Tensor:
            return args - y

        def iterate(self, y: Tensor, args: Tensor) -> Tensor:
            return args

    goal = torch.randn(3, 4, dtype=F64)
    before = goal.clone()
    with torch.no_grad():
        for name in ("fixed_point", "nesterov", "anderson"):
            assert solvers.solve(Constant(), torch.zeros(3, 4, dtype=F64), solver=name, args=goal).y1.allclose(before)
            assert goal.equal(before)


class Halved(Prepared):
    """Changes the value alone, so that the inherited `iterate` is that of another field."""

    def __call__(self, t: Any, y: Tensor, args: Any) -> Tensor:
        return super().__call__(t, y, args) / 2


class Passing:
    """Hands attributes on, as instruments do."""

    def __init__(self, field: Any) -> None:
        self.field, self.calls = field, 0

    def __call__(self, t: Any, y: Tensor, args: Any) -> Tensor:
        self.calls += 1
        return self.field(t, y, args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.field, name)


class OfModule(nn.Module):
    def forward(self, t: Any, y: Tensor, args: Any) -> Tensor:
        return -y

    def iterate(self, y: Tensor, args: Any) -> Tensor:
        return torch.zeros_like(y)


class OfAnotherModule(OfModule):
    def forward(self, t: Any, y: Tensor, args: Any) -> Tensor:
        return -y / 2


def test_an_iterate_that_belongs_to_another_value_is_not_used() -> None:
    y0, args = problem()
    halved, passing = Halved(), Passing(Prepared())
    for solver in ("euler", solvers.FixedPoint(max_steps=4, rtol=0.0, atol=0.0)):
        got = solvers.solve(halved, y0, 4.0, solver, args).y1
        assert got.allclose(solvers.solve(lambda t, y, a: halved(t, y, a), y0, 4.0, solvers.Euler(dt=1), args).y1)
    assert halved.calls == 0
    solvers.solve(passing, y0, 4.0, "euler", args)
    assert passing.calls == 4
    assert solvers.solve(OfModule(), y0, 1.0, solvers.Euler(dt=1)).y1.equal(0 * y0)
    assert solvers.solve(OfAnotherModule(), y0, 1.0, solvers.Euler(dt=1)).y1.equal(y0 / 2)


def test_an_iterate_of_another_shape_is_refused() -> None:
    class Wrong(Gradient):
        def iterate(self, y: Tensor, args: Any) -> Tensor:
            return y[:, :2]

    y0, args = problem()
    with pytest.raises(ValueError, match=r"must return a tensor of y's shape, \(3, 6\), but got shape \(3, 2\)"):
        solvers.solve(Wrong(), y0, 4.0, "euler", args)


def test_it_compiles_as_one_graph_and_batches_under_vmap() -> None:
    y0, args = problem()
    torch._dynamo.reset()

    def end(y0: Tensor, drive: Tensor, solver: Any = "euler") -> Tensor:
        return solvers.solve(Prepared(), y0, 4.0, solver, (args[0], drive, args[2])).y1

    compiled = torch.compile(end, backend="aot_eager", fullgraph=True)
    assert compiled(y0, args[1]).allclose(end(y0, args[1]), rtol=1e-12)
    with torch.no_grad():
        given = solvers.Nesterov(max_steps=5, rtol=0.0, atol=0.0)
        assert compiled(y0, args[1], given).allclose(end(y0, args[1], given), rtol=1e-12)
    with torch.no_grad():
        for solver in ("euler", solvers.Nesterov(max_steps=5, rtol=0.0, atol=0.0)):
            batched = torch.func.vmap(lambda drive, solver=solver: end(y0, drive, solver))(torch.stack([args[1]] * 2))
            assert batched[1].allclose(end(y0, args[1], solver), rtol=1e-12)
