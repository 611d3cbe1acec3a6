"""Attention masks, in the conventions of torch.nn.functional.scaled_dot_product_attention."""

import torch
from torch import Tensor

from solvers.tracing import values


def split_mask(attn_mask: Tensor | None, is_causal: bool, like: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """A mask as (key_bias, pair_mask), of which at least one is None.

    Args:
        attn_mask: broadcastable to (batch, heads, tokens, tokens); boolean (True takes part) or additive.
        is_causal: query i sees keys up to i; not together with `attn_mask`.
        like: (batch, heads, tokens, ...), of the device and type that the bias is to have.

    Returns:
        key_bias: additive, (..., 1, tokens), for masks that are the same for every query. Its largest entry is 0, since
            a constant has no effect, as in softmax.
        pair_mask: other masks, unchanged.
    """
    tokens = like.shape[-2]
    if is_causal:
        if attn_mask is not None:
            raise ValueError("is_causal=True and attn_mask exclude each other; put the causal part into attn_mask")
        return None, torch.ones(tokens, tokens, dtype=torch.bool, device=like.device).tril()
    if attn_mask is None:
        return None, None
    _check_mask(attn_mask, (*like.shape[:2], tokens, tokens))
    if attn_mask.dtype != torch.bool:
        attn_mask = attn_mask.to(like.dtype)
    if not _same_for_every_query(attn_mask):
        return None, attn_mask
    keys = attn_mask[..., :1, :]
    if keys.dtype == torch.bool:
        return torch.zeros_like(keys, dtype=like.dtype).masked_fill_(~keys, float("-inf")), None
    largest = keys.amax(-1, keepdim=True)
    return torch.where(largest.isneginf(), keys, keys - largest), None


def whole_mask(attn_mask: Tensor | None, is_causal: bool, like: Tensor) -> Tensor | None:
    """A mask for scaled_dot_product_attention: as it is, causal, or None. Arguments as in `split_mask`."""
    tokens = like.shape[-2]
    if is_causal:
        return split_mask(attn_mask, is_causal, like)[1]
    if attn_mask is None:
        return None
    _check_mask(attn_mask, (*like.shape[:2], tokens, tokens))
    return attn_mask if attn_mask.dtype == torch.bool else attn_mask.to(like.dtype)


def _check_mask(mask: Tensor, full: tuple[int, ...]) -> None:
    if not isinstance(mask, Tensor) or not (mask.dtype == torch.bool or mask.is_floating_point()):
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"attn_mask must be a boolean or floating point tensor, got {got}")
    shape = mask.shape
    sides = zip(reversed(shape), reversed(full), strict=False)
    if not 2 <= len(shape) <= 4 or shape[-1] != full[-1] or any(side not in (1, whole) for side, whole in sides):
        raise ValueError(
            f"attn_mask must be broadcastable to (batch, heads, tokens, tokens) = {full}, got {tuple(shape)}; "
            "a key padding mask (batch, tokens) becomes mask[:, None, None, :]"
        )


def _same_for_every_query(mask: Tensor) -> bool:
    if mask.shape[-2] == 1 or mask.stride(-2) == 0:
        return True
    if torch.compiler.is_compiling():  # values cannot be looked at
        return False
    return bool(values(mask == mask[..., :1, :]).all())
