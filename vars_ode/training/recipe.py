"""How a model is trained."""

from dataclasses import dataclass, field

import solvers
from vars_ode.training.horizon import FixedHorizon, Horizon


@dataclass(frozen=True)
class Recipe:
    """How a model is trained. AdamW with a cosine schedule over the updates, as is common for vision transformers.

    Args:
        epochs: passes over the data.
        batch_size: images per update; the last, smaller batch of an epoch is left out.
        learning_rate: peak, after the warm-up.
        warmup_epochs: linear warm-up from a hundredth of the peak; may be a fraction of an epoch.
        weight_decay: decoupled; biases, norms and other vectors are exempt, as is what `vars_ode.no_weight_decay` and a
            model's own `no_weight_decay()` name.
        label_smoothing: of the cross entropy.
        clip_grad: l2 norm that the gradient is clipped to.
        horizon: how the VARS layers are solved at each update; `FixedHorizon()` for as they are set.
    """

    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 2e-3
    warmup_epochs: float = 1.0
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    clip_grad: float = 1.0
    horizon: Horizon = field(default_factory=FixedHorizon)

    def __post_init__(self) -> None:
        solvers.checks.positive_int("epochs", self.epochs)
        solvers.checks.positive_int("batch_size", self.batch_size)
        solvers.checks.positive_number("learning_rate", self.learning_rate)
        for name in ("warmup_epochs", "weight_decay", "label_smoothing"):
            solvers.checks.non_negative_number(name, getattr(self, name))
        solvers.checks.positive_number("clip_grad", self.clip_grad)
        if not isinstance(self.horizon, Horizon):
            raise ValueError(f"horizon must be FixedHorizon() or RandomHorizon(low, high, ...), got {self.horizon!r}")
