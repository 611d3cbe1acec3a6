"""ODE and fixed-point solvers for batched fields in PyTorch. Independent of what is integrated.

    solution = solvers.solve(field, y0, t1=5.0, solver="rk4", args=args)

`available()` lists the solvers, `adjoints.available()` the ways to differentiate through them.
"""

import logging

from solvers import adjoints as adjoints
from solvers import checks as checks
from solvers.adaptive import AdaptiveSolver as AdaptiveSolver
from solvers.adaptive import EmbeddedRungeKutta as EmbeddedRungeKutta
from solvers.adjoints import Checkpointed as Checkpointed
from solvers.adjoints import Continuous as Continuous
from solvers.adjoints import Direct as Direct
from solvers.adjoints import Implicit as Implicit
from solvers.adjoints import Truncated as Truncated
from solvers.anderson import Anderson as Anderson
from solvers.bosh3 import Bosh3 as Bosh3
from solvers.catalogue import available as available
from solvers.catalogue import get as get
from solvers.catalogue import name_of as name_of
from solvers.catalogue import register as register
from solvers.dopri5 import Dopri5 as Dopri5
from solvers.dopri8 import Dopri8 as Dopri8
from solvers.douglas_rachford import DouglasRachford as DouglasRachford
from solvers.euler import Euler as Euler
from solvers.exponential_euler import ExponentialEuler as ExponentialEuler
from solvers.field import Field as Field
from solvers.fixed_point import FixedPoint as FixedPoint
from solvers.fixed_step import ExplicitRungeKutta as ExplicitRungeKutta
from solvers.fixed_step import FixedStepSolver as FixedStepSolver
from solvers.heun import Heun as Heun
from solvers.integrate import solve as solve
from solvers.midpoint import Midpoint as Midpoint
from solvers.nesterov import Nesterov as Nesterov
from solvers.registry import Registry as Registry
from solvers.relaxation import RelaxationSolver as RelaxationSolver
from solvers.rk4 import RK4 as RK4
from solvers.scipy import Scipy as Scipy
from solvers.solution import Solution as Solution
from solvers.solution import SolverError as SolverError
from solvers.solution import SolverWarning as SolverWarning
from solvers.solution import Status as Status
from solvers.solver import Solver as Solver
from solvers.steady_state import SteadyState as SteadyState
from solvers.tableau import ButcherTableau as ButcherTableau
from solvers.tableau import EmbeddedTableau as EmbeddedTableau
from solvers.tsit5 import Tsit5 as Tsit5

logging.getLogger("solvers").addHandler(logging.NullHandler())  # silent until the program sets up logging
