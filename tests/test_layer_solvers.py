"""Every solver and every adjoint from the layer's constructor: it trains, or says which pairs do."""

import warnings

import pytest
import torch

import solvers
from vars_ode import VARSAttention

UNTIL = solvers.SteadyState(rtol=2e-2, atol=1e-3)  # scipy takes thousands of evaluations to a tighter one


def layer_with(solver: str, adjoint: str) -> VARSAttention:
    torch.manual_seed(0)
    steady = adjoint in ("implicit", "truncated") and not solvers.get(solver).reaches_equilibrium
    return VARSAttention(
        8,
        num_heads=2,
        num_features=3,
        learned="dictionary",
        rate="power",
        t1=200.0 if steady else 2.0,
        solver=solver,
        adjoint=adjoint,
        until=UNTIL if steady else None,
    )


def is_defined(solver: str, adjoint: str) -> bool:
    relaxes = solvers.get(solver).reaches_equilibrium
    return {
        "direct": solver != "scipy",
        "checkpointed": solver != "scipy",
        "continuous": not relaxes,
        "implicit": True,
        "truncated": True,
    }[adjoint]


@pytest.mark.parametrize("adjoint", solvers.adjoints.available())
@pytest.mark.parametrize("solver", solvers.available())
def test_layer_trains_or_says_what_does(solver: str, adjoint: str) -> None:
    layer = layer_with(solver, adjoint)
    tokens, target = torch.randn(2, 9, 8), torch.randn(2, 9, 8)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    if not is_defined(solver, adjoint):
        with pytest.raises(ValueError, match=r"(?i)use|works|adjoint"):
            layer(tokens).sum().backward()
        return
    losses = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", solvers.SolverWarning)  # of the continuous adjoint, and of step limits
        for _ in range(3):
            loss = (layer(tokens) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            missing = [name for name, parameter in layer.named_parameters() if parameter.grad is None]
            assert not missing
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < losses[0]
