"""Nested containers of tensors: the `args` of a field."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree  # the one place that touches it: torch has no public twin that traces under compile


def tensors(tree: Any) -> list[Tensor]:
    """Every tensor in nested tuples, lists, dicts and named tuples, in a fixed order."""
    if isinstance(tree, tuple) and all(isinstance(leaf, Tensor) for leaf in tree):
        return list(tree)  # the usual case, in a tenth of the time
    return [leaf for leaf in _pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """The same nesting with `function` applied to every tensor; other leaves stay as they are."""
    return _pytree.tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, tree)


def replace_tensors(tree: Any, replacements: list[Tensor]) -> Any:
    """The same nesting with its tensors, in the order of `tensors`, exchanged for `replacements`."""
    remaining = iter(replacements)
    return map_tensors(lambda _: next(remaining), tree)


def cast_floating(tree: Any, dtype: torch.dtype) -> Any:
    """Floating point tensors in `dtype`; integer and boolean ones untouched."""
    if all(leaf.dtype == dtype or not leaf.is_floating_point() for leaf in tensors(tree)):
        return tree
    return map_tensors(lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf, tree)
