"""What the tests of the demo and of what reads its results share."""

from vars_ode.study.plan import Plan
from vars_ode.training import Recipe

TINY = Plan(  # a study of seconds
    recipe=Recipe(epochs=1, batch_size=20),
    train_images=40,
    test_images=20,
    severities=(1,),
    corruptions=("small_contrast",),
    sweep="euler@1,5; single-step; nesterov",
    sweep_conditions=(("clean", 0), ("small_contrast", 1)),
    model_options={"embed_dim": 16, "depth": 1, "num_heads": 2},
    num_features=4,
)
