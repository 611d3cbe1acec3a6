"""Measurements of layers and solvers. Each returns its numbers, with a plot and an export.

found = analysis.work_precision(layer, x, ("euler", "rk4", "dopri5"))
found.plot().savefig("work_precision.png")
found.to_csv("work_precision.csv")
"""

from vars_ode.analysis.accuracy import AccuracyBySolver as AccuracyBySolver
from vars_ode.analysis.accuracy import accuracy_by_solver as accuracy_by_solver
from vars_ode.analysis.basin import Basin as Basin
from vars_ode.analysis.basin import basin as basin
from vars_ode.analysis.equilibrium import Equilibrium as Equilibrium
from vars_ode.analysis.equilibrium import find_equilibrium as find_equilibrium
from vars_ode.analysis.foreground import boundary_foreground as boundary_foreground
from vars_ode.analysis.foreground import image_foreground as image_foreground
from vars_ode.analysis.maps import AttentionMaps as AttentionMaps
from vars_ode.analysis.maps import attention_maps as attention_maps
from vars_ode.analysis.measurement import Measurement as Measurement
from vars_ode.analysis.order import Convergence as Convergence
from vars_ode.analysis.order import Convergences as Convergences
from vars_ode.analysis.order import order_of_convergence as order_of_convergence
from vars_ode.analysis.problems import InitialValueProblem as InitialValueProblem
from vars_ode.analysis.problems import problem_of as problem_of
from vars_ode.analysis.single_step import SingleStepGap as SingleStepGap
from vars_ode.analysis.single_step import single_step_gap as single_step_gap
from vars_ode.analysis.spectrum import spectral_radius as spectral_radius
from vars_ode.analysis.trace import Trace as Trace
from vars_ode.analysis.trace import trace as trace
from vars_ode.analysis.work_precision import WorkPrecision as WorkPrecision
from vars_ode.analysis.work_precision import work_precision as work_precision
from vars_ode.models import layer_inputs as layer_inputs
