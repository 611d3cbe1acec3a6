"""Whether the values of a tensor can be looked at."""

import torch
from torch import Tensor


def is_traced(tensor: Tensor) -> bool:
    """Whether they cannot: under torch.compile, torch.export and torch.func.vmap, nested ones too, and on meta."""
    if torch.compiler.is_compiling() or tensor.is_meta:
        return True
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            return True
        tensor = functorch.get_unwrapped(tensor)
    return False
