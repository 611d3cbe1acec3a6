"""The solvers by name."""

from solvers.euler import Euler
from solvers.exponential_euler import ExponentialEuler
from solvers.fixed_point import FixedPoint
from solvers.heun import Heun
from solvers.midpoint import Midpoint
from solvers.nesterov import Nesterov
from solvers.registry import Registry
from solvers.rk4 import RK4
from solvers.solver import Solver

_registry: Registry[Solver] = Registry("solver", Solver)  # type: ignore[type-abstract]
_registry.register("euler", Euler)
_registry.register("midpoint", Midpoint)
_registry.register("heun", Heun)
_registry.register("rk4", RK4)
_registry.register("exponential_euler", ExponentialEuler)
_registry.register("fixed_point", FixedPoint, aliases=("ista",))
_registry.register("nesterov", Nesterov, aliases=("fista",))

get = _registry.get
available = _registry.available
register = _registry.register
