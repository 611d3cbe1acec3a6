"""`vars-ode convergence`: every measure on one model and its input, as CSV, PNG and a page."""

from vars_ode.analysis.study.run import check_solvers as check_solvers
from vars_ode.analysis.study.run import run_convergence as run_convergence
from vars_ode.analysis.study.subjects import build_subject as build_subject
