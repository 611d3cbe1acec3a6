"""The library's own loop for embedded Runge-Kutta methods: independence, cost, gradients, and the other back ends."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from solver_problems import F64, Counted, Linear, Rational, slope
from torch import Tensor

import solvers
from solvers import Status, SteadyState
from solvers.stages import Stepper

NAMES = ("bosh3", "dopri5", "tsit5", "dopri8")
LIBRARIES = {
    "bosh3": ["torchdiffeq"],
    "dopri5": ["torchode", "torchdiffeq"],
    "tsit5": ["torchode"],
    "dopri8": ["torchdiffeq"],
}
each_method = pytest.mark.parametrize("name", NAMES)


def orbit(t: Tensor, y: Tensor, speed: Tensor) -> Tensor:
    """Turns at a speed of the sample's own, with a pull to the unit circle; element by element, so that no sample's
    rounding depends on the batch."""
    x, v = y[:, 0], y[:, 1]
    pull = 1 - x * x - v * v
    return torch.stack([speed * v + pull * x, -speed * x + pull * v], 1)


def orbits(batch: int, features: int, dtype: torch.dtype = F64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    y0 = torch.randn(batch, 2, features, generator=generator, dtype=F64).to(dtype)
    return y0, torch.linspace(0.3, 9.0, batch, dtype=dtype)[:, None]


def mixed(t: Tensor, y: Tensor, kind: Tensor) -> Tensor:
    """Samples that decay, that have a pole at t = 1, that leave their domain at t = 1, and that are at rest."""
    decays, pole, leaves = (kind == n for n in range(3))
    rate = torch.where(decays, -y, 0 * y)
    rate = torch.where(pole, y * y, rate)
    return torch.where(leaves, (1 - t).sqrt() + 0 * y, rate)


@each_method
def test_the_back_ends_agree(name: str) -> None:
    """Values within tolerance, and the same statuses, for samples that end in every way there is."""
    kind = torch.arange(4, dtype=F64)[:, None]
    y0 = torch.tensor([[1.0], [1.0], [0.5], [2.0]], dtype=F64)
    expected = [Status.SUCCESS, Status.STEP_SIZE_TOO_SMALL, Status.NONFINITE, Status.STEADY_STATE]
    times = [0.2, 0.5, 0.9]
    states = {}
    for backend in ("native", *LIBRARIES[name]):
        solver = solvers.get(name, rtol=1e-6, atol=1e-6, backend=backend)
        options: dict[str, Any] = {"until": SteadyState(rtol=0, atol=1e-9), "save_at": times, "on_failure": "nan"}
        solution = solvers.solve(mixed, y0, 2.0, solver, kind, **options)
        assert solution.status.tolist() == expected
        stats = solution.stats
        assert stats["num_steps"].equal(stats["num_accepted"] + stats["num_rejected"])
        assert stats["num_steps"][3] == 0
        states[backend] = torch.cat([solution.ys, solution.y1[None]])[:, [0, 3]]
        limited = solvers.solve(mixed, y0, 2.0, solvers.get(solver, max_steps=2), kind, **options)
        assert limited.status.tolist() == [Status.MAX_STEPS_REACHED] * 3 + [Status.STEADY_STATE]
    for backend in LIBRARIES[name]:
        torch.testing.assert_close(states[backend], states["native"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("until", [None, SteadyState(rtol=0, atol=1e-3)], ids=["end", "steady"])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@each_method
def test_no_sample_depends_on_another_by_a_single_bit(name: str, dtype: torch.dtype, until: Any) -> None:
    for features in (1, 5, 33):
        y0, speed = orbits(6, features, dtype)
        y0[3] = math.nan
        options: dict[str, Any] = {"save_at": [0.4, 1.1, 2.0], "until": until, "on_failure": "nan"}
        with torch.no_grad():
            together = solvers.solve(orbit, y0, 2.0, name, speed, **options)
            for i in (0, 1, 5):
                alone = solvers.solve(orbit, y0[i : i + 1], 2.0, name, speed[i : i + 1], **options)
                assert alone.ys[:, 0].equal(together.ys[:, i])
                assert alone.y1[0].equal(together.y1[i])
                for key, value in alone.stats.items():
                    assert value[0] == together.stats[key][i], key


@each_method
def test_an_answer_is_the_same_every_time(name: str) -> None:
    y0, speed = orbits(4, 7)
    first, second = (solvers.solve(orbit, y0, 2.0, name, speed, save_at="steps") for _ in range(2))
    assert first.ys.equal(second.ys)
    assert first.ts.equal(second.ts)


@pytest.mark.parametrize("until", [None, SteadyState(rtol=0, atol=1e-4)], ids=["end", "steady"])
@each_method
def test_one_look_at_the_device_per_step(name: str, until: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    for module in (solvers.embedded, solvers.stages, solvers.bookkeeping):
        original = module.on_host
        monkeypatch.setattr(module, "on_host", lambda tensor, original=original: (looks.append(1), original(tensor))[1])
    y0, speed = orbits(5, 3)
    solution = solvers.solve(orbit, y0, 3.0, name, speed, until=until, save_at=[0.5, 1.5])
    trials = int(solution.stats["num_steps"].max())
    assert trials > 5
    assert len(looks) == trials + 3  # two for the first step, one for the residual


@pytest.mark.parametrize("save_at", [None, "steps", (0.3, 0.31, 1.7)])
@each_method
def test_checkpointed_gradients_are_those_of_direct(name: str, save_at: Any) -> None:
    """Also past trials that are rejected and that are not finite, which are not taken again."""
    gradients, evals = [], []
    for adjoint in ("direct", "checkpointed"):
        y0, rate = (torch.tensor(values, dtype=F64, requires_grad=True) for values in ([[1.0], [2.0]], [[9.0], [1.0]]))

        def field(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
            return -k * (y + 0 * y.sqrt())

        counted = Counted(field)
        solver = solvers.get(name, rtol=1e-4, atol=1e-4)
        solution = solvers.solve(counted, y0, 4.0, solver, rate, adjoint=adjoint, save_at=save_at)
        assert solution.success.all()
        gradients.append(torch.autograd.grad(solution.ys.square().sum() + solution.y1.sum(), (y0, rate)))
        evals.append(counted.calls)
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)
    assert evals[0] < evals[1] <= 2 * evals[0]


def test_checkpoints_of_an_unknown_number_of_steps() -> None:
    with pytest.raises(ValueError, match=r"num_segments=4 divides a known number of steps.*leave it out"):
        solvers.solve(Rational(), torch.ones(1, 1), 1.0, "dopri5", adjoint=solvers.Checkpointed(num_segments=4))
    with pytest.raises(ValueError, match=r"'checkpointed' recomputes steps.*the back end 'native'"):
        solvers.solve(Rational(), torch.ones(1, 1), 1.0, solvers.Dopri5(backend="torchode"), adjoint="checkpointed")


@each_method
def test_order_of_the_dense_output(name: str) -> None:
    """The error of one step, at its end and inside of it, by the length of the step."""
    tableau, (y0, a) = solvers.get(name).tableau, Linear.problem()
    lengths = [0.8, 0.6, 0.4] if name == "dopri8" else [0.2, 0.1, 0.05]
    inside, at_end = [], []
    for h in lengths:
        stepper = Stepper(Linear(), tableau, 1e-6, 1e-6, y0, a)
        t, step, rate = np.zeros(2), np.full(2, h), Linear()(torch.tensor(0.0), y0, a)
        at_end.append(float((stepper.step(t, step, y0, rate) - Linear.exact(h, y0, a)).norm()))
        state = stepper.inside(t, step, 0.4 * h, np.array([0, 1]), y0)
        inside.append(float((state - Linear.exact(0.4 * h, y0, a)).norm()))
    order = tableau.method.order
    assert slope(lengths, at_end) > order + 0.7
    assert slope(lengths, inside) > (tableau.dense_order or order) + 0.7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"error_order": 5}, "not of order 5: sum b c"),
        ({"b_error": (0.1, *[0.0] * 6)}, "not of order 4: sum b is"),
        ({"dense_order": 5}, "not of order 5"),
        ({"dense": ((1.0,), *[(0.0,)] * 6)}, "the dense output ends with the weights"),
    ],
)
def test_wrong_embedded_coefficients_are_refused(change: dict[str, Any], message: str) -> None:
    for solver in (solvers.Dopri5, solvers.Tsit5):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(solver.tableau, **change)


def test_a_last_stage_elsewhere_is_refused() -> None:
    heun = solvers.Heun.tableau
    with pytest.raises(ValueError, match="the last stage must be taken at the end of the step"):
        solvers.EmbeddedTableau(heun, error_order=1, b_error=(-0.5, 0.5))


def test_order_nine_of_dopri8_is_refused() -> None:
    with pytest.raises(ValueError, match="not of order 9"):
        dataclasses.replace(solvers.Dopri8.tableau.method, order=9)


def test_times_finer_than_float32() -> None:
    y0 = torch.ones(2, 1)
    for t1 in (1 + 1e-9, 1 - 1e-9):
        rate = torch.tensor(1e9 if t1 > 1 else -1e9)
        solution = solvers.solve(lambda t, y, k: -k * y, y0, t1, "tsit5", rate, t0=1.0)
        assert solution.success.all()
        assert solution.y1.allclose(torch.full_like(y0, math.exp(-1)), rtol=1e-4)


class Pulled:
    """y' = args - y, with what else fields may offer."""

    def __call__(self, t: Tensor, y: Tensor, args: Tensor) -> Tensor:
        return self.iterate(y, args) - y

    def iterate(self, y: Tensor, args: Tensor) -> Tensor:
        return args + 0 * y

    def iteration(self, args: Tensor) -> Any:
        self.prepared = True
        return lambda y: args.expand_as(y).clone()


@each_method
def test_a_prepared_field_is_used_where_nothing_is_recorded(name: str) -> None:
    field, y0, goal = Pulled(), torch.randn(3, 2, 4, dtype=F64), torch.randn(3, 1, 1, dtype=F64)
    expected = goal + (y0 - goal) * math.exp(-2.0)
    recorded = solvers.solve(field, y0.requires_grad_(), 2.0, name, goal).y1
    assert not hasattr(field, "prepared")
    with torch.no_grad():
        plain = solvers.solve(field, y0, 2.0, name, goal).y1
    assert field.prepared
    assert plain.allclose(expected, atol=1e-3)
    assert plain.allclose(recorded, rtol=1e-9)


@each_method
def test_a_zero_start_needs_no_run_up(name: str) -> None:
    """The state says nothing of its scale there; the first step is that of the rates."""
    field = lambda t, y, args: 1 - y  # noqa: E731
    solution = solvers.solve(field, torch.zeros(1, 3), 2.0, name, save_at="steps")
    assert solution.ts[1, 0] > 1e-3
    assert solution.stats["num_rejected"].item() <= 1
