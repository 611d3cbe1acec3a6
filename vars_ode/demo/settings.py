"""What a demo run is: everything that a result depends on, and nothing else."""

from dataclasses import asdict, dataclass, field
from typing import Any

import solvers
from vars_ode.training import Recipe


@dataclass(frozen=True)
class Settings:
    """Fixed for all runs in a results folder. Attentions and seeds are not here: runs of others can join later.

    Args:
        recipe: how each twin is trained.
        solver: what the VARS twins are trained with, such as "euler-5".
        sparsity: lam.
        t1: horizon of the solve.
        num_features: random features per head; VARS-SD has as many static templates.
        train_images, test_images: how many of the embedded data set, from its start.
        severities: of the corruptions.
        corruptions: their names.
        sweep: the solvers tried without retraining.
        sweep_conditions: (condition, severity) that they are tried on.
        eps: of FGSM and PGD, on the [0, 1] scale; PGD takes 5 steps of eps/4 from a random start.
    """

    recipe: Recipe = field(default_factory=lambda: Recipe(epochs=5, batch_size=50))
    solver: str = "euler-5"
    sparsity: float = 0.3
    t1: float = 5.0
    num_features: int = 16
    image_size: int = 28
    patch_size: int = 4
    embed_dim: int = 64
    depth: int = 3
    num_heads: int = 4
    mlp_ratio: float = 2.0
    train_images: int = 5000
    test_images: int = 500
    severities: tuple[int, ...] = (1, 2, 3)
    corruptions: tuple[str, ...] = (
        "small_gaussian_noise",
        "small_impulse_noise",
        "small_gaussian_blur",
        "small_contrast",
        "small_brightness",
        "small_pixelate",
        "small_occlusion",
        "small_elastic_transform",
    )
    sweep: tuple[str, ...] = ("single-step", "euler-2", "euler-5", "euler-20", "rk4-5", "nesterov")
    sweep_conditions: tuple[tuple[str, int], ...] = (("clean", 0), ("small_gaussian_noise", 2))
    eps: float = 8 / 255

    def __post_init__(self) -> None:
        solvers.checks.non_negative_number("sparsity", self.sparsity)
        for name in ("train_images", "test_images"):
            solvers.checks.positive_int(name, getattr(self, name))

    def as_dict(self) -> dict[str, Any]:
        """Flat, in JSON's types."""
        values = asdict(self)
        recipe = values.pop("recipe")
        return {**recipe, **{name: _plain(value) for name, value in values.items()}}

    def differences(self, stored: dict[str, Any]) -> list[str]:
        """What `stored` (from `as_dict`) says otherwise, in words."""
        own = self.as_dict()
        names = sorted(own.keys() | stored.keys())
        return [
            f"{name} {stored.get(name)!r} there, {own.get(name)!r} now"
            for name in names
            if stored.get(name) != own.get(name)
        ]


QUICK = Settings(
    recipe=Recipe(epochs=1, batch_size=50),
    train_images=1000,
    test_images=200,
    severities=(2,),
    corruptions=("small_gaussian_noise", "small_gaussian_blur", "small_contrast", "small_occlusion"),
    sweep=("single-step", "euler-5", "rk4-5"),
)


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
