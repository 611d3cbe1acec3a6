"""The convergence table of the adjoints keeps its shape: the continuous adjoint alone gets worse with the horizon."""

from vars_ode.bench.adjoint_horizon import adjoint_horizon


def test_only_the_continuous_adjoint_falls_apart() -> None:
    short, long = adjoint_horizon((3.0, 25.0))
    assert short.continuous < 1e-2
    assert long.continuous > 100 * short.continuous
    for row in (short, long):
        assert row.direct < 2e-2
        assert row.checkpointed < 2e-2
        assert row.implicit < 1e-6
