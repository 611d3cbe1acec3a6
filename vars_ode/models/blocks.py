"""The parts of a Robust Vision Transformer (Mao et al., CVPR 2022, arXiv 2105.07926), around any attention."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from solvers.tracing import is_transformed
from vars_ode.folding import fold_before, fold_behind
from vars_ode.grids import Grid

PLAIN_MLP_WIDTH = 768  # stages of this width have an MLP without convolution, in the authors' models


class ConvStem(nn.Module):
    """Images to tokens: 7x7/2 convolution, BatchNorm, 3x3/2 max-pool, a convolution of patch_size // 4.

    Args:
        in_chans: channels of the image.
        dim: width of the tokens.
        width: channels in between.
        patch_size: pixels a token stands for along an axis, a multiple of 4.
    """

    def __init__(self, in_chans: int, dim: int, width: int = 32, patch_size: int = 16) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.conv1 = nn.Conv2d(in_chans, width, 7, stride=2, padding=2)
        self.norm: nn.Module = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(width, dim, patch_size // 4, stride=patch_size // 4)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_chans, H, W) to (batch, dim, height, width), with channels last in memory, as tokens have them."""
        x = x.contiguous(memory_format=torch.channels_last)  # in which pooling takes a fifth of the time
        return self.conv2(self.pool(self.norm(self.conv1(x))))

    def fold_norms(self) -> None:
        """Fold the BatchNorm into the convolution before it, in place."""
        self.norm = fold_behind(self.conv1, self.norm)

    def grid(self, img_size: tuple[int, int]) -> Grid:
        """The (height, width) of tokens of an image (H, W), 0 where it is too small."""
        patch = self.patch_size // 4
        height, width = ((((side - 3) // 2) // 2 + 1) // patch if side >= 3 else 0 for side in img_size)
        return (height, width)


class Downsample(nn.Module):
    """3x3/2 depthwise convolution between stages, from `dim` to `dim_out`, a multiple of it."""

    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim_out, 3, stride=2, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class GELU(nn.Module):
    """GELU, in place where no gradient is recorded: a new tensor costs more than the function itself."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or is_transformed([x]):
            return F.gelu(x)
        return torch.ops.aten.gelu_(x)


class ConvMlp(nn.Module):
    """1x1 convolution, 3x3 depthwise convolution, 1x1 convolution, each followed by BatchNorm; GELU between them."""

    takes_grid: ClassVar[bool] = True

    def __init__(self, dim: int, hidden: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.bn1: nn.Module = nn.BatchNorm2d(hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.bn2: nn.Module = nn.BatchNorm2d(hidden)
        self.fc2 = nn.Conv2d(hidden, dim, 1)
        self.bn3: nn.Module = nn.BatchNorm2d(dim)
        self.act = GELU()
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Tokens (batch, tokens, dim) on a grid (height, width) to the same."""
        maps = self.bn1(as_maps(pointwise(self.fc1, x), grid))
        maps = self.act(self.bn2(self.dwconv(self.drop(self.act(maps)))))
        return self.drop(as_tokens(self.bn3(as_maps(pointwise(self.fc2, as_tokens(maps)), grid))))

    def fold_norms(self) -> None:
        """Fold each BatchNorm into the convolution before it, in place."""
        self.bn1 = fold_behind(self.fc1, self.bn1)
        self.bn2 = fold_behind(self.dwconv, self.bn2)
        self.bn3 = fold_behind(self.fc2, self.bn3)


def pointwise(conv: nn.Conv2d, tokens: Tensor) -> Tensor:
    """A 1x1 convolution of tokens (batch, tokens, dim): as a linear map, since torch's convolution copies its input."""
    return F.linear(tokens, conv.weight.flatten(1), conv.bias)


def as_maps(tokens: Tensor, grid: Grid) -> Tensor:
    """Tokens (batch, tokens, dim) as maps (batch, dim, height, width), channels last in memory: a view."""
    return tokens.unflatten(1, grid).permute(0, 3, 1, 2)


def as_tokens(maps: Tensor) -> Tensor:
    """Maps (batch, dim, height, width) as tokens (batch, tokens, dim): a view, where channels are last in memory."""
    return maps.permute(0, 2, 3, 1).flatten(1, 2)


class TokenBatchNorm(nn.Module):
    """BatchNorm over batch and tokens, (batch, tokens, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.bn: nn.Module = nn.BatchNorm1d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class Block(nn.Module):
    """x + attention(norm1(x)), then x + mlp(norm2(x)).

    Attentions that normalise their output (`normalizes_output`), as VARS-S does, have no norm1, and BatchNorm as norm2.
    Those with an argument `grid` (`takes_grid`) get the grid of the tokens.

    Args:
        dim: width of the tokens.
        attn: the attention, (batch, tokens, dim) to the same.
        mlp_ratio: width of the MLP over `dim`.
        proj_drop: dropout in the MLP.
        drop_path: stochastic depth.
    """

    def __init__(
        self, dim: int, attn: nn.Module, mlp_ratio: float = 4.0, proj_drop: float = 0.0, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        convolutional = getattr(attn, "normalizes_output", False)
        hidden = int(dim * mlp_ratio)
        self.norm1 = nn.Identity() if convolutional else nn.LayerNorm(dim, eps=1e-6)
        self.attn = attn
        self.norm2: nn.Module = TokenBatchNorm(dim) if convolutional else nn.LayerNorm(dim, eps=1e-6)
        plain = dim == PLAIN_MLP_WIDTH
        self.mlp: Any = Mlp(dim, hidden, drop=proj_drop) if plain else ConvMlp(dim, hidden, proj_drop)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Tokens (batch, tokens, dim) on a grid (height, width) to the same."""
        x = x + self.drop_path(_on_grid(self.attn, self.norm1(x), grid))
        return x + self.drop_path(_on_grid(self.mlp, self.norm2(x), grid))

    def fold_norms(self) -> None:
        """Fold the BatchNorm before the MLP, if there is one, into its first map, in place."""
        if isinstance(self.norm2, TokenBatchNorm):
            fold_before(self.norm2.bn, self.mlp.fc1)
            self.norm2 = nn.Identity()


def _on_grid(module: nn.Module, x: Tensor, grid: Grid) -> Tensor:
    """The module's output; modules with an argument `grid` get that of the tokens."""
    return module(x, grid=grid) if getattr(module, "takes_grid", False) else module(x)


class Stage(nn.Module):
    """Blocks of one width, behind a `Downsample` in all stages but the first."""

    def __init__(self, downsample: Downsample | None, blocks: list[Block]) -> None:
        super().__init__()
        self.downsample = downsample if downsample is not None else nn.Identity()
        self.blocks = nn.ModuleList(blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """(batch, dim_in, H, W) to (batch, dim, height, width)."""
        x = self.downsample(x)
        grid = (x.shape[-2], x.shape[-1])
        x = as_tokens(x)
        for block in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled() and not torch.jit.is_scripting():
                x = checkpoint(block, x, grid, use_reentrant=False)
            else:
                x = block(x, grid)
        return as_maps(x, grid)
