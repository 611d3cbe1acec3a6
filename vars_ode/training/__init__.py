"""Training a classifier: a recipe, and the loop that follows it."""

from vars_ode.training.loop import DivergedError as DivergedError
from vars_ode.training.loop import Epoch as Epoch
from vars_ode.training.loop import Recipe as Recipe
from vars_ode.training.loop import fit as fit
from vars_ode.training.loop import flip_and_shift as flip_and_shift
