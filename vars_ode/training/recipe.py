"""How a model is trained."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import solvers
from vars_ode.training.horizon import FixedHorizon, Horizon

ClipMode = Literal["norm", "value", "agc"]
MixupMode = Literal["batch", "pair", "elem"]
AmpDtype = Literal["bfloat16", "float16"]
Nonfinite = Literal["stop", "skip"]


@dataclass(frozen=True)
class Recipe:
    """How a model is trained. Names and meanings are those of timm's training script.

    Args:
        epochs: passes over the data.
        batch_size: images per update, process and accumulation step; the last, smaller batch of an epoch is left out.
        grad_accum_steps: batches whose gradients make one update.
        opt: optimizer, out of `timm.optim.list_optimizers()`.
        opt_kwargs: further arguments of it, such as {"betas": [0.9, 0.95]}.
        lr: learning rate at its peak, after the warm-up.
        momentum: of optimizers that have one.
        weight_decay: decoupled where the optimizer has it so; biases, norms and other vectors are exempt, as is what
            `vars_ode.no_weight_decay` and a model's own `no_weight_decay()` name.
        layer_decay: factor of the learning rate from one block to the block before it; None for one rate.
        clip_grad: what the gradient is clipped to; None for no clipping.
        clip_mode: by its l2 "norm", each "value", or "agc", adaptively (Brock et al. 2021, arXiv 2102.06171).
        sched: schedule of the learning rate over the updates: "cosine", "step", "poly" or another of timm's.
        sched_kwargs: further arguments of it, such as {"decay_epochs": 30, "decay_rate": 0.1}.
        warmup_epochs: linear warm-up at the start; may be a fraction of an epoch. At most half of the training.
        warmup_lr: where the warm-up starts; None for a hundredth of lr.
        min_lr: where the schedule ends; None for a hundredth of lr.
        smoothing: label smoothing of the cross entropy.
        bce_loss: binary cross entropy for each class instead (Wightman et al. 2021, arXiv 2110.00476).
        mixup: alpha of Mixup (Zhang et al. 2018, arXiv 1710.09412); 0 for none.
        cutmix: alpha of CutMix (Yun et al. 2019, arXiv 1905.04899); 0 for none.
        mixup_prob: share of the batches that are mixed.
        mixup_switch_prob: share of these that CutMix has, where both are on.
        mixup_mode: one mixture per "batch", "pair" or "elem". Only the first is the same for any number of processes.
        mixup_off_epoch: from which epoch on nothing is mixed; 0 for never.
        aug_repeats: looks at an image in an epoch (repeated augmentation, Hoffer et al. 2020, arXiv 1901.09335); an
            epoch keeps its length, and sees a part of the images. 0 for one look at each.
        amp: compute in `amp_dtype` where that is safe; VARS layers solve in float32.
        amp_dtype: "bfloat16" or "float16", which scales the loss.
        grad_checkpointing: recompute blocks in the backward pass, for less memory.
        channels_last: memory layout of images and convolutions.
        torchcompile: back end of torch.compile, such as "inductor"; None for none.
        model_ema: keep an exponential moving average of the weights; it is measured, and saved.
        model_ema_decay: of it.
        model_ema_warmup: raise the decay from 0 over the first updates.
        sync_bn: statistics of BatchNorm over all processes, on GPUs.
        nonfinite: "stop" where loss or gradient are not finite, or "skip" the update and count it.
        horizon: how the VARS layers are solved at each update; `FixedHorizon()` for as they are set.
    """

    epochs: int = 10
    batch_size: int = 64
    grad_accum_steps: int = 1
    opt: str = "adamw"
    opt_kwargs: dict[str, Any] = field(default_factory=dict)
    lr: float = 2e-3
    momentum: float = 0.9
    weight_decay: float = 0.05
    layer_decay: float | None = None
    clip_grad: float | None = 1.0
    clip_mode: ClipMode = "norm"
    sched: str = "cosine"
    sched_kwargs: dict[str, Any] = field(default_factory=dict)
    warmup_epochs: float = 1.0
    warmup_lr: float | None = None
    min_lr: float | None = None
    smoothing: float = 0.1
    bce_loss: bool = False
    mixup: float = 0.0
    cutmix: float = 0.0
    mixup_prob: float = 1.0
    mixup_switch_prob: float = 0.5
    mixup_mode: MixupMode = "batch"
    mixup_off_epoch: int = 0
    aug_repeats: int = 0
    amp: bool = False
    amp_dtype: AmpDtype = "bfloat16"
    grad_checkpointing: bool = False
    channels_last: bool = False
    torchcompile: str | None = None
    model_ema: bool = False
    model_ema_decay: float = 0.9998
    model_ema_warmup: bool = False
    sync_bn: bool = False
    nonfinite: Nonfinite = "stop"
    horizon: Horizon = field(default_factory=FixedHorizon)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "grad_accum_steps"):
            solvers.checks.positive_int(name, getattr(self, name))
        for name in ("lr", "layer_decay", "clip_grad"):
            if name == "lr" or getattr(self, name) is not None:
                solvers.checks.positive_number(name, getattr(self, name))
        for name in ("warmup_epochs", "weight_decay", "momentum", "smoothing", "mixup", "cutmix"):
            solvers.checks.non_negative_number(name, getattr(self, name))
        for name in ("warmup_lr", "min_lr", "mixup_off_epoch", "aug_repeats"):
            if getattr(self, name) is not None:
                solvers.checks.non_negative_number(name, getattr(self, name))
        for name in ("smoothing", "mixup_prob", "mixup_switch_prob", "model_ema_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share, from 0 to 1, got {getattr(self, name)!r}")
        choices = {"clip_mode": ClipMode, "mixup_mode": MixupMode, "amp_dtype": AmpDtype, "nonfinite": Nonfinite}
        for name, kind in choices.items():
            solvers.checks.one_of(name, getattr(self, name), get_args(kind))
        if self.mixes and self.batch_size % 2:
            raise ValueError(f"mixup and cutmix mix images in pairs; make batch_size even, got {self.batch_size}")
        if not isinstance(self.horizon, Horizon):
            raise ValueError(f"horizon must be FixedHorizon() or RandomHorizon(low, high, ...), got {self.horizon!r}")

    @property
    def mixes(self) -> bool:
        """Whether images are mixed."""
        return self.mixup > 0 or self.cutmix > 0
