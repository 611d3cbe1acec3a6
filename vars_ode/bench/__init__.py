"""Measurements of speed, memory and accuracy, by name for `vars-ode bench`. Compare numbers of one run only."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from solvers.checks import one_of
from vars_ode.bench.adjoint import adjoint as adjoint
from vars_ode.bench.adjoint_horizon import adjoint_horizon as adjoint_horizon
from vars_ode.bench.convert import convert as convert
from vars_ode.bench.equilibrium import equilibrium as equilibrium
from vars_ode.bench.layer import layer as layer
from vars_ode.bench.memory import memory as memory
from vars_ode.bench.model import model as model
from vars_ode.bench.rates import rates as rates
from vars_ode.bench.solver import solver as solver
from vars_ode.bench.table import table as table
from vars_ode.bench.truncated import truncated as truncated
from vars_ode.bench.vars_s import vars_s as vars_s

BENCHES: dict[str, Callable[..., Sequence[Any]]] = {
    "layer": layer,
    "model": model,
    "memory": memory,
    "solver": solver,
    "equilibrium": equilibrium,
    "adjoint": adjoint,
    "adjoint-horizon": adjoint_horizon,
    "rates": rates,
    "truncated": truncated,
    "vars-s": vars_s,
    "convert": convert,
}


def run(name: str, options: Mapping[str, Any]) -> Sequence[Any]:
    """The rows of a bench; a ValueError for a name that there is not, or an option that it has no use for."""
    one_of("bench", name, BENCHES)
    for option in options:
        takers = [other for other, bench in BENCHES.items() if option in inspect.signature(bench).parameters]
        if name not in takers:
            raise ValueError(f"the bench {name!r} has no use for --{option}; {', '.join(takers)} have")
    return BENCHES[name](**options)
