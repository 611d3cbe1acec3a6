"""Grids of tokens: checks, inference from a number of tokens, and resampling of maps."""

import math
import operator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int]
MAX_PREFIX_TOKENS = 8  # class, distillation and register tokens of the models in use


@dataclass
class TokenLayout:
    """Where the tokens of a model lie. The model keeps it up to date, and its layers read it.

    Attributes:
        grid: (height, width) of the last tokens.
        num_prefix_tokens: how many come before them.
    """

    grid: Grid
    num_prefix_tokens: int

    def check(self, tokens: int) -> None:
        """A ValueError unless a sequence has as many tokens."""
        expected = math.prod(self.grid) + self.num_prefix_tokens
        tokens = known_number(tokens)
        if tokens != expected:
            raise ValueError(
                f"the model that this layer belongs to has {self.num_prefix_tokens} tokens before a grid of "
                f"{tuple(self.grid)}, {expected} in all, but {tokens} came: give the layer grid=(height, width) for "
                "tokens of another image, and leave patch dropout out, after which positions are unknown"
            )


def check_grid(grid: object) -> Grid:
    """`grid` as (height, width); a ValueError where it is not two whole numbers of at least 1."""
    sides = tuple(grid) if isinstance(grid, tuple | list) else ()
    if len(sides) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides):
        raise ValueError(f"grid must be (height, width) in tokens, got {grid!r}")
    return (sides[0], sides[1])


def check_tokens(grid: Grid, tokens: int) -> None:
    """A ValueError unless `tokens` fill the grid."""
    if math.prod(check_grid(grid)) != tokens:
        raise ValueError(f"the grid {tuple(grid)} has {math.prod(grid)} positions, but there are {tokens} tokens")


def known_number(tokens: int) -> int:
    """A number of tokens whose value decides what is computed, under torch.compile too.

    Shapes that torch.compile keeps open are symbols, which have no square root. A grid belongs to one number of tokens:
    asking for it compiles once for each, and leaves the size of the batch open.
    """
    return operator.index(tokens)


def infer_grid(tokens: int) -> tuple[Grid, int]:
    """(square grid, number of prefix tokens) of a sequence: the largest square, behind at most eight prefix tokens."""
    tokens = known_number(tokens)
    side = math.isqrt(tokens)
    prefix = tokens - side**2
    if side == 0 or prefix > MAX_PREFIX_TOKENS:
        raise ValueError(
            f"{tokens} tokens are no square grid with up to {MAX_PREFIX_TOKENS} prefix tokens; give "
            "grid=(height, width), whose tokens come last"
        )
    return (side, side), prefix


def resample(maps: Tensor, grid: Grid, new_grid: Grid) -> Tensor:
    """Maps (a, b, tokens of `grid`) resampled (bicubic) to (a, b, tokens of `new_grid`)."""
    if tuple(grid) == tuple(new_grid):
        return maps
    picture = maps.unflatten(-1, grid)
    return F.interpolate(picture, size=tuple(new_grid), mode="bicubic", align_corners=False).flatten(-2)
