"""Whether the values of a tensor can be looked at, and how, under the transforms of torch.compile and torch.func."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad


def is_traced(tensor: Tensor) -> bool:
    """Whether there are no values: under torch.compile and torch.export, and on the meta device."""
    return torch.compiler.is_compiling() or tensor.is_meta


def values(tensor: Tensor) -> Tensor:
    """The tensor without the wrappers of torch.func; under vmap with the values of all its lanes, in any layout.

    To branch on: a decision that is taken for every lane at once depends on all of them.
    """
    if torch.compiler.is_compiling():
        return tensor
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor


def on_host(tensor: Tensor) -> np.ndarray:
    """The values as an array; waits until a device has computed them."""
    plain = values(tensor)
    if plain is tensor:
        return np.asarray(plain.detach().cpu().numpy())
    with torch._C._DisableFuncTorch():  # a transform takes part in every call, also on what it has not wrapped
        return np.asarray(plain.detach().cpu().numpy())


def refuse_vmap(who: str, tensors: Iterable[Tensor]) -> None:
    """A ValueError where one of these is batched by torch.func.vmap, which `who` cannot be."""
    if not torch.compiler.is_compiling() and any(map(_is_batched, tensors)):
        raise ValueError(
            f"{who} decides by values, which torch.func.vmap does not show: take a fixed-step or relaxation solver, or "
            "leave vmap out, since every y0[i] is a problem of its own"
        )


def is_transformed(tensors: Iterable[Tensor]) -> bool:
    """Whether a transform of torch.func is active, or one of these carries a tangent of forward mode."""
    if torch.compiler.is_compiling():
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    if forward_ad._current_level < 0:  # the usual case: this is asked at every evaluation of some fields
        return False
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


def is_recorded(tensors: list[Tensor]) -> bool:
    """Whether operations are recorded for derivatives, of forward mode too, or by a compiler or torch.func."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling() or is_transformed(tensors)


def refuse_transforms(who: str, tensors: Iterable[Tensor], advice: str) -> None:
    """A ValueError where `is_transformed`, as `who` has no derivatives but those of torch.autograd's backward."""
    if is_transformed(tensors):
        raise ValueError(
            f"{who} works under torch.autograd alone, but was called under a transform of torch.func (grad, vmap, jvp) "
            f"or with tangents of forward mode: {advice}"
        )


def _is_batched(tensor: Tensor) -> bool:
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            return True
        tensor = functorch.get_unwrapped(tensor)
    return False
