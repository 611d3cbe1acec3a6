"""The demo: two presets of a study, a full one and one of under a minute."""

from dataclasses import replace

from vars_ode.study.plan import Plan
from vars_ode.training import RandomHorizon, Recipe

FULL = Plan(recipe=Recipe(epochs=5, batch_size=50, horizon=RandomHorizon(1, 10)), ridge=0.05)
ATTENTIONS = ("softmax", "vars-d-factor", "vars-sd-factor", "vars-sd-coupling")

QUICK = replace(
    FULL,
    recipe=replace(FULL.recipe, epochs=1),
    train_images=1000,
    test_images=200,
    severities=(2,),
    corruptions=("small_gaussian_noise", "small_gaussian_blur", "small_contrast", "small_occlusion"),
    sweep="euler@1,5,20; rk4@5",
)
QUICK_ATTENTIONS = ("softmax", "vars-sd-factor")
