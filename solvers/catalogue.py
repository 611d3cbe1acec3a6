"""The solvers by name."""

from solvers.anderson import Anderson
from solvers.bosh3 import Bosh3
from solvers.dopri5 import Dopri5
from solvers.dopri8 import Dopri8
from solvers.douglas_rachford import DouglasRachford
from solvers.euler import Euler
from solvers.exponential_euler import ExponentialEuler
from solvers.fixed_point import FixedPoint
from solvers.heun import Heun
from solvers.midpoint import Midpoint
from solvers.nesterov import Nesterov
from solvers.registry import Registry
from solvers.rk4 import RK4
from solvers.scipy import Scipy
from solvers.solver import Solver
from solvers.tsit5 import Tsit5

_registry: Registry[Solver] = Registry("solver", Solver)  # type: ignore[type-abstract]
_registry.register("euler", Euler)
_registry.register("midpoint", Midpoint)
_registry.register("heun", Heun)
_registry.register("rk4", RK4)
_registry.register("exponential_euler", ExponentialEuler)
_registry.register("bosh3", Bosh3)
_registry.register("dopri5", Dopri5)
_registry.register("tsit5", Tsit5)
_registry.register("dopri8", Dopri8)
_registry.register("scipy", Scipy)
_registry.register("fixed_point", FixedPoint, aliases=("ista",))
_registry.register("nesterov", Nesterov, aliases=("fista",))
_registry.register("anderson", Anderson)
_registry.register("douglas_rachford", DouglasRachford)

get = _registry.get
available = _registry.available
register = _registry.register
name_of = _registry.name_of
