"""Training a classifier: a recipe, the loop that follows it, and the solve of each update."""

from vars_ode.training.checkpoints import Checkpoints as Checkpoints
from vars_ode.training.horizon import FixedHorizon as FixedHorizon
from vars_ode.training.horizon import Horizon as Horizon
from vars_ode.training.horizon import RandomHorizon as RandomHorizon
from vars_ode.training.horizon import parse_horizon as parse_horizon
from vars_ode.training.images import Augmentation as Augmentation
from vars_ode.training.images import augmentation_of as augmentation_of
from vars_ode.training.images import flip_and_shift as flip_and_shift
from vars_ode.training.loop import DivergedError as DivergedError
from vars_ode.training.loop import Epoch as Epoch
from vars_ode.training.loop import StoppedError as StoppedError
from vars_ode.training.loop import Training as Training
from vars_ode.training.loop import Update as Update
from vars_ode.training.loop import fit as fit
from vars_ode.training.recipe import Recipe as Recipe
from vars_ode.training.solve_log import failures as failures
from vars_ode.training.validation import Validation as Validation
