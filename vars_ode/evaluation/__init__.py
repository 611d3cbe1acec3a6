"""The evaluation of a saved model: benchmarks, corruptions, attacks, checks of gradient masking; kept by image.

run_evaluation("runs/rvt_tiny", EvaluationSettings(data="imagenet", conditions=("clean", "pgd")), "runs/measured")
evaluation = read_evaluation("runs/measured")
"""

from vars_ode.evaluation.run import run_evaluation as run_evaluation
from vars_ode.evaluation.settings import EvaluationSettings as EvaluationSettings
from vars_ode.evaluation.storage import Evaluation as Evaluation
from vars_ode.evaluation.storage import Key as Key
from vars_ode.evaluation.storage import read_evaluation as read_evaluation
