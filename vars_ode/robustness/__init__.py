"""How a classifier stands up to corrupted and attacked images.

The accuracy under every condition, and the mean corruption error relative to another model:

    rows = list(evaluate(model, fashion_mnist("test"), attacks={"pgd": partial(pgd, eps=8 / 255, step_size=4 / 255)}))
    mean_corruption_error(corruption_errors(rows), corruption_errors(rows_of_another_model))

Rows are counts of `Outcome`, which holds the prediction for each image. Processes that share a data set evaluate their
own images and put the outcomes together, with the same result as one process:

    mine = list(outcomes(model, Subset(data, shard), indices=shard))
    merged = [Outcome.merge(both) for both in zip(mine, theirs, strict=True)]
"""

from vars_ode.robustness.attacks import Draws as Draws
from vars_ode.robustness.attacks import fgsm as fgsm
from vars_ode.robustness.attacks import pgd as pgd
from vars_ode.robustness.autoattack import autoattack as autoattack
from vars_ode.robustness.autoattack import require_autoattack as require_autoattack
from vars_ode.robustness.corruptions import available as available
from vars_ode.robustness.corruptions import corrupt as corrupt
from vars_ode.robustness.corruptions import frost_with as frost_with
from vars_ode.robustness.corruptions import register as register
from vars_ode.robustness.corruptions import registered as registered
from vars_ode.robustness.corruptions import strengths as strengths
from vars_ode.robustness.evaluation import accuracy as accuracy
from vars_ode.robustness.evaluation import evaluate as evaluate
from vars_ode.robustness.evaluation import outcomes as outcomes
from vars_ode.robustness.metrics import ALEXNET_IMAGENET_C_ERRORS as ALEXNET_IMAGENET_C_ERRORS
from vars_ode.robustness.metrics import ALEXNET_IMAGENET_CLEAN_ERROR as ALEXNET_IMAGENET_CLEAN_ERROR
from vars_ode.robustness.metrics import corruption_errors as corruption_errors
from vars_ode.robustness.metrics import mean_corruption_error as mean_corruption_error
from vars_ode.robustness.metrics import relative_mean_corruption_error as relative_mean_corruption_error
from vars_ode.robustness.outcome import Outcome as Outcome
from vars_ode.robustness.outcome import Row as Row
from vars_ode.robustness.square import square as square
