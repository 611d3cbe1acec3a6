"""Measurements of speed, memory and accuracy, by name for `vars-ode bench`. Compare numbers of one run only."""

from collections.abc import Callable, Sequence
from typing import Any

from vars_ode.bench.adjoint import adjoint as adjoint
from vars_ode.bench.adjoint_horizon import adjoint_horizon as adjoint_horizon
from vars_ode.bench.convert import convert as convert
from vars_ode.bench.equilibrium import equilibrium as equilibrium
from vars_ode.bench.memory import memory as memory
from vars_ode.bench.rates import rates as rates
from vars_ode.bench.solver import solver as solver
from vars_ode.bench.table import table as table
from vars_ode.bench.truncated import truncated as truncated
from vars_ode.bench.vars_s import vars_s as vars_s

BENCHES: dict[str, Callable[[], Sequence[Any]]] = {
    "equilibrium": equilibrium,
    "memory": memory,
    "adjoint": adjoint,
    "adjoint-horizon": adjoint_horizon,
    "rates": rates,
    "truncated": truncated,
    "solver": solver,
    "vars-s": vars_s,
    "convert": convert,
}
