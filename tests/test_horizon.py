"""Training over a distribution of solves."""

from collections import Counter

import pytest
import torch
from torch.utils.data import TensorDataset

import solvers
from vars_ode import VARSAttention
from vars_ode.building import ModelSpec
from vars_ode.models import vars_layers
from vars_ode.training import FixedHorizon, RandomHorizon, Recipe, fit, parse_horizon

SMALL = {"embed_dim": 16, "depth": 1, "num_heads": 2}


def model(**options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return ModelSpec(attention="vars-d-coupling", attention_options=options, model_options=SMALL).build()


def data() -> TensorDataset:
    torch.manual_seed(1)
    return TensorDataset(torch.rand(24, 1, 28, 28), torch.arange(24) % 10)


def seen_during(horizon: RandomHorizon, monkeypatch: pytest.MonkeyPatch, **options: object) -> list[tuple]:
    """(solver, steps over the horizon) at each update of a training."""
    seen: list[tuple] = []
    forward = VARSAttention.forward

    def spy(layer: VARSAttention, *args: object, **kwargs: object) -> torch.Tensor:
        if layer.training:  # and not where the end of an epoch measures its solve
            dt = layer.solver.dt if hasattr(layer.solver, "dt") else None
            seen.append((type(layer.solver).__name__, layer.t1, dt))
        return forward(layer, *args, **kwargs)

    monkeypatch.setattr(VARSAttention, "forward", spy)
    trained = model(**options)
    (layer,) = vars_layers(trained).values()
    before = layer.settings()
    fit(trained, data(), Recipe(epochs=4, batch_size=6, horizon=horizon), seed=3)
    assert layer.settings() == before
    return seen


def test_horizons_are_drawn_per_update_and_settings_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    horizon = RandomHorizon(1, 6, equilibrium=0.3)
    seen = seen_during(horizon, monkeypatch, solver=solvers.Euler(num_steps=5), t1=5.0)
    assert len(seen) == 16
    kinds = Counter(name for name, _, _ in seen)
    assert set(kinds) == {"Euler", "DouglasRachford"}
    euler = [(t1, dt) for name, t1, dt in seen if name == "Euler"]
    assert {dt for _, dt in euler} == {1.0}  # five steps over a horizon of 5 are steps of 1, whatever is drawn
    assert len({t1 for t1, _ in euler}) > 2
    expected = [horizon.draw(3, update) for update in range(16)]
    assert [t1 for name, t1, _ in seen if name == "Euler"] == [one["t1"] for one in expected if "t1" in one]


def test_what_is_drawn_depends_on_seed_and_update_alone() -> None:
    horizon = RandomHorizon(1, 64, "log-uniform")
    draws = [horizon.draw(0, update)["t1"] for update in range(2000)]
    assert draws == [horizon.draw(0, update)["t1"] for update in range(2000)]
    assert draws[:20] != [horizon.draw(1, update)["t1"] for update in range(20)]
    assert min(draws) == 1
    assert max(draws) == 64
    below = sum(t1 <= 8 for t1 in draws) / 2000
    assert 0.45 < below < 0.6  # half of the logarithm's range
    uniform = Counter(RandomHorizon(2, 5).draw(0, update)["t1"] for update in range(2000))
    assert set(uniform) == {2, 3, 4, 5}
    assert min(uniform.values()) > 400
    share = sum("solver" in RandomHorizon(1, 9, equilibrium=0.25).draw(0, u) for u in range(2000)) / 2000
    assert 0.22 < share < 0.28


def test_a_fixed_horizon_changes_nothing() -> None:
    assert FixedHorizon().draw(0, 0) == {}
    plain, fixed = model(), model()
    fit(plain, data(), Recipe(epochs=1, batch_size=6), seed=0)
    fit(fixed, data(), Recipe(epochs=1, batch_size=6, horizon=FixedHorizon()), seed=0)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), fixed.parameters(), strict=True))


def test_models_without_a_solver_take_no_notice() -> None:
    softmax = ModelSpec(attention="softmax", model_options=SMALL).build()
    fit(softmax, data(), Recipe(epochs=1, batch_size=6, horizon=RandomHorizon(1, 4)))


@pytest.mark.parametrize("adjoint", ["implicit", solvers.Truncated(3)])
def test_updates_at_the_equilibrium_move_every_parameter(adjoint: object) -> None:
    trained = model(ridge=0.05)
    before = {name: parameter.detach().clone() for name, parameter in trained.named_parameters()}
    horizon = RandomHorizon(1, 2, equilibrium=1.0, adjoint=adjoint)
    fit(trained, data(), Recipe(epochs=1, batch_size=6, warmup_epochs=0, horizon=horizon))
    still = [name for name, parameter in trained.named_parameters() if torch.equal(before[name], parameter)]
    assert still == []


def test_an_interrupted_update_leaves_the_layers_as_they_were() -> None:
    trained = model()
    (layer,) = vars_layers(trained).values()
    before = layer.settings()
    data = TensorDataset(torch.rand(6, 1, 28, 28), torch.zeros(6, dtype=torch.long))

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    handle = trained.register_forward_hook(interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(trained, data, Recipe(epochs=1, batch_size=6, horizon=RandomHorizon(2, 3)))
    handle.remove()
    assert layer.settings() == before


@pytest.mark.parametrize("text", ["fixed", "uniform 1-10", "log-uniform 1-64", "log-uniform 1-64 +0.25"])
def test_horizons_as_text(text: str) -> None:
    assert str(parse_horizon(text)) == text
    assert parse_horizon("3-7") == RandomHorizon(3, 7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: parse_horizon("1..10"), "cannot read the horizon"),
        (lambda: RandomHorizon(5, 2), "low=5 above high=2"),
        (lambda: RandomHorizon(0, 2), "low must be a whole number"),
        (lambda: RandomHorizon(1, 2, "normal"), "unknown distribution 'normal'"),
        (lambda: RandomHorizon(1, 2, equilibrium=1.5), "share of the updates"),
        (lambda: RandomHorizon(1, 2, solver="rk4"), "reaches no equilibrium"),
        (lambda: Recipe(horizon=5), "horizon must be"),
        (
            lambda: fit(model(solver="nesterov"), data(), Recipe(batch_size=6, horizon=RandomHorizon(1, 2))),
            "needs a layer whose solver takes fixed steps",
        ),
    ],
)
def test_bad_horizons_are_told(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
