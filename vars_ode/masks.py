"""Attention masks, in the conventions of torch.nn.functional.scaled_dot_product_attention."""

import torch
from torch import Tensor


def split_mask(
    attn_mask: Tensor | None, is_causal: bool, tokens: int, like: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """A mask as (key_bias, pair_mask), of which at most one is there.

    Args:
        attn_mask: broadcastable to (batch, heads, tokens, tokens); boolean (True takes part) or additive.
        is_causal: query i sees keys up to i; excludes `attn_mask`.
        tokens: the sequence length.
        like: a tensor of the device and type that the bias is to have.

    Returns:
        key_bias: additive, (..., 1, tokens), for masks that are the same for every query.
        pair_mask: other masks, as they came.
    """
    if is_causal:
        if attn_mask is not None:
            raise ValueError("is_causal=True and attn_mask exclude each other; put the causal part into attn_mask")
        return None, torch.ones(tokens, tokens, dtype=torch.bool, device=like.device).tril()
    if attn_mask is None:
        return None, None
    if attn_mask.ndim < 2 or attn_mask.shape[-1] != tokens or attn_mask.shape[-2] not in (1, tokens):
        raise ValueError(
            f"attn_mask must be broadcastable to (batch, heads, {tokens}, {tokens}), got {tuple(attn_mask.shape)}; "
            "a key padding mask (batch, tokens) becomes mask[:, None, None, :]"
        )
    if attn_mask.dtype != torch.bool and not attn_mask.is_floating_point():
        raise ValueError(f"attn_mask must be boolean or floating point, got {attn_mask.dtype}")
    if attn_mask.dtype != torch.bool:
        attn_mask = attn_mask.to(like.dtype)
    if not _same_for_every_query(attn_mask):
        return None, attn_mask
    keys = attn_mask[..., :1, :]
    if keys.dtype == torch.bool:
        keys = torch.zeros_like(keys, dtype=like.dtype).masked_fill_(~keys, float("-inf"))
    return keys, None


def _same_for_every_query(mask: Tensor) -> bool:
    if mask.shape[-2] == 1 or mask.stride(-2) == 0:
        return True
    if torch.compiler.is_compiling():  # values cannot be looked at
        return False
    return bool((mask == mask[..., :1, :]).all())
