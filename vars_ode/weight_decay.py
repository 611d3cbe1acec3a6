"""Parameters to exempt from weight decay."""

from torch import nn


def no_weight_decay(model: nn.Module) -> set[str]:
    """Names of the parameters of this library's layers in `model` that weight decay would pull to a wrong value.

    A module names its own in `no_weight_decay_names`: those where "no change" is another value than zero, and filters
    that must not fade out. Vectors and numbers are not among them: optimizers made by timm exempt these anyway. Give
    the names to `timm.optim.param_groups_weight_decay(..., no_weight_decay_list=...)`, beside those that the model
    knows itself.
    """
    return {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        for name in getattr(module, "no_weight_decay_names", ())
    }
