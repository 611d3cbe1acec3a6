"""Which parameters weight decay should leave alone."""

from torch import nn

from vars_ode.baselines import PositionScaledAttention
from vars_ode.convolutional import VARSConvAttention
from vars_ode.learned import LearnedDictionary, LearnedFactor

# Where "no change" is another value than zero, and filters that must not fade out.
_EXEMPT: dict[type[nn.Module], tuple[str, ...]] = {
    LearnedFactor: ("factor",),
    LearnedDictionary: ("mixing",),
    VARSConvAttention: ("kernel", "output_kernel"),
    PositionScaledAttention: ("position_scale",),
}


def no_weight_decay(model: nn.Module) -> set[str]:
    """Names of the parameters of this library's layers in `model` that weight decay would pull to a wrong value.

    Vectors and numbers are not among them: optimizers made by timm exempt these anyway. Give the names to
    `timm.optim.param_groups_weight_decay(..., no_weight_decay_list=...)`, beside those that the model knows itself.
    """
    return {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        for kind, names in _EXEMPT.items()
        if isinstance(module, kind)
        for name in names
    }
