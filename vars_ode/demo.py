"""The demo: two presets of a study, a full one and one of under a minute."""

from dataclasses import replace

from vars_ode.study.plan import Plan
from vars_ode.training import Recipe

FULL = Plan()
ATTENTIONS = ("softmax", "vars-d-factor", "vars-sd-factor", "vars-sd-dictionary")

QUICK = replace(
    FULL,
    recipe=Recipe(epochs=1, batch_size=50),
    train_images=1000,
    test_images=200,
    severities=(2,),
    corruptions=("small_gaussian_noise", "small_gaussian_blur", "small_contrast", "small_occlusion"),
    sweep=("single-step", "euler-5", "rk4-5"),
)
QUICK_ATTENTIONS = ("softmax", "vars-sd-factor")
