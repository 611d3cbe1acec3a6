"""Robust Vision Transformer (Mao et al., Towards Robust Vision Transformer, CVPR 2022) with any attention."""

import copy
import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.models._features import feature_take_indices  # as the models inside timm do
from torch import Tensor, nn

import solvers
from vars_ode.baselines import PositionScaledAttention
from vars_ode.dictionaries import StaticDynamic
from vars_ode.grids import Grid
from vars_ode.models.attentions import NamedAttention, attention_layer, named_attention
from vars_ode.models.blocks import Block, ConvStem, Downsample, Stage, as_tokens
from vars_ode.models.revisions import revision_options
from vars_ode.weight_decay import no_weight_decay


class _AttentionOfBlocks:
    """Builds the attention of each block from the name, its options and the arguments of the model.

    Args:
        chosen: the row of the table.
        qkv_bias: whether the projections have a bias.
        position_scaling: position-aware attention scaling, for softmax attention alone.
        era: options of an era of the authors' code.
        options: of the layer; they override those of the era.
    """

    def __init__(
        self,
        chosen: NamedAttention,
        qkv_bias: bool,
        position_scaling: bool,
        era: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> None:
        if position_scaling and chosen.name != "softmax":
            raise ValueError(
                f"position-aware scaling (the _plus models) multiplies softmax logits, got attention={chosen.name!r}; "
                'take attention="softmax" or a model without _plus'
            )
        self.name, self.qkv_bias, self.position_scaling = chosen.name, qkv_bias, position_scaling
        era = dict(era)
        learned = era.pop("learned", None)  # goes into the name
        name = f"{chosen.name}-{learned}" if learned and "learned" not in chosen.options else chosen.name
        self.layer = attention_layer(name, **{**era, **options})
        self.needs_grid = chosen.name.startswith("vars-sd") and isinstance(options.get("dictionary", ""), str)

    def build(self, dim: int, num_heads: int, grid: Grid, attn_drop: float, proj_drop: float) -> nn.Module:
        """The attention of one block: `dim` wide, on a (height, width) grid of tokens."""
        if self.position_scaling:
            return PositionScaledAttention(dim, num_heads, grid, self.qkv_bias, attn_drop, proj_drop)
        on_grid: dict[str, Any] = {}
        if self.needs_grid:
            on_grid = {"dictionary": StaticDynamic(grid, num_prefix_tokens=0)}
        elif self.name == "vars-s":
            on_grid = {"grid": grid}
        return self.layer(
            dim, num_heads=num_heads, qkv_bias=self.qkv_bias, attn_drop=attn_drop, proj_drop=proj_drop, **on_grid
        )


def _settings(
    chosen: NamedAttention,
    normalize_queries: bool | None,
    sparsity: float | None,
    num_steps: int | None,
    num_features: int | None,
    options: dict[str, Any],
) -> dict[str, Any]:
    """The options of the attention: those among the model's own arguments, and `options`."""
    stated: dict[str, Any] = {
        "normalize_queries": normalize_queries,
        "sparsity": sparsity,
        "num_features": num_features,
    }
    if num_steps is not None:
        solvers.checks.positive_int("num_steps", num_steps)
        if "t1" in options:
            raise ValueError("num_steps and t1 both state the horizon (num_steps steps of dt = 1); give one of them")
        stated["t1"] = float(num_steps)
    stated = {name: value for name, value in stated.items() if value is not None}
    unused = [name for name in stated if name not in chosen.option_names]
    if unused:
        warnings.warn(f"attention={chosen.name!r} has no use for {', '.join(unused)}; ignored", stacklevel=4)
    return {**{name: value for name, value in stated.items() if name not in unused}, **options}


class RobustVisionTransformer(nn.Module):
    """Convolutional stem, stages of transformer blocks, global average pool, LayerNorm, linear head.

    With its defaults a tiny model (RVT-Ti) with softmax attention. It offers what timm expects of a model.

    Args:
        img_size: (H, W) or one side, in pixels. Static templates and filters are learned on its grid of tokens; images
            of other sizes are taken as they come.
        base_dims: width of a head, per stage.
        depths: blocks, per stage.
        num_heads: heads, per stage; the width of a stage is base_dims * num_heads, and a multiple of the one before.
        mlp_ratio: hidden width of the MLPs over the width of the stage.
        num_classes: outputs of the head; 0 for none.
        in_chans: channels of the image.
        attention: out of `vars_ode.available_attentions`, with the layer's own defaults.
        revision: an era of the authors' code, "paper" or "learned", with that era's settings; see
            `vars_ode.models.revisions`.
        normalize_queries, sparsity, num_features: options of the attention; its own, or the era's, where None.
        num_steps: Euler steps of dt = 1, which is the horizon t1; the attention's own where None. Of these
            four arguments, those that the attention does not have are ignored with a warning.
        patch_size: pixels a token of the first stage stands for along an axis, a multiple of 4.
        stem_width: channels inside the stem.
        qkv_bias: whether attention projects its input with a bias.
        position_scaling: position-aware attention scaling, the `_plus` models.
        global_pool: "avg", or "" for token maps through norm and head.
        drop_rate, proj_drop_rate, attn_drop_rate, drop_path_rate: dropout before the head, on projections and in MLPs,
            on attention weights; stochastic depth, rising linearly over the blocks to this rate.
        options: further keyword arguments of the attention layer, such as solver="rk4", adjoint="implicit".

    Raises:
        ValueError: arguments that state no model; the message says what was expected.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        base_dims: Sequence[int] = (32, 32),
        depths: Sequence[int] = (10, 2),
        num_heads: Sequence[int] = (6, 12),
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        in_chans: int = 3,
        attention: str = "self-attention",
        revision: str | None = None,
        normalize_queries: bool | None = None,
        sparsity: float | None = None,
        num_steps: int | None = None,
        num_features: int | None = None,
        *,
        patch_size: int = 16,
        stem_width: int = 32,
        qkv_bias: bool = True,
        position_scaling: bool = False,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        **options: Any,
    ) -> None:
        stated = {name: value for name, value in locals().items() if name not in ("self", "options", "__class__")}
        super().__init__()
        self.config: dict[str, Any] = {**stated, **options}  # what it takes to build the model again
        self.img_size = _check_img_size(img_size)
        _check_scale(base_dims, depths, num_heads, patch_size, in_chans, num_classes)
        chosen = named_attention(attention)
        settings = _settings(chosen, normalize_queries, sparsity, num_steps, num_features, options)
        era = revision_options(revision, chosen)
        self.attention = _AttentionOfBlocks(chosen, qkv_bias, position_scaling, era, settings)
        dims = [width * heads for width, heads in zip(base_dims, num_heads, strict=True)]
        self.stem = ConvStem(in_chans, dims[0], stem_width, patch_size)
        drops = (attn_drop_rate, proj_drop_rate, drop_path_rate)
        self.stages = nn.Sequential(*self._stages(dims, depths, num_heads, mlp_ratio, *drops))
        self.feature_info = [
            {"num_chs": dim, "reduction": patch_size * 2**index, "module": f"stages.{index}"}
            for index, dim in enumerate(dims)
        ]
        self.num_features = self.head_hidden_size = self.embed_dim = dims[-1]
        self.num_classes = num_classes
        self.global_pool = _check_pool(global_pool)
        self.norm: nn.Module = nn.LayerNorm(dims[-1], eps=1e-6)
        self.head_drop = nn.Dropout(drop_rate)
        self.head: nn.Module = nn.Linear(dims[-1], num_classes) if num_classes > 0 else nn.Identity()
        self._init_weights()

    def _stages(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        mlp_ratio: float,
        attn_drop: float,
        proj_drop: float,
        drop_path: float,
    ) -> list[Stage]:
        grid = self.stem.grid(self.img_size)
        if min(grid) < 1:
            raise ValueError(
                f"img_size={self.img_size} leaves no token at patch_size={self.stem.patch_size}; take larger images"
            )
        rates = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        stages = []
        for index, (dim, depth, heads) in enumerate(zip(dims, depths, num_heads, strict=True)):
            downsample = None
            if index:
                downsample = Downsample(dims[index - 1], dim)
                grid = ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
            blocks = []
            for _ in range(depth):
                attn = self.attention.build(dim, heads, grid, attn_drop, proj_drop)
                blocks.append(Block(dim, attn, mlp_ratio, proj_drop, next(rates)))
            stages.append(Stage(downsample, blocks))
        return stages

    def _init_weights(self) -> None:
        own = {id(part) for m in self.modules() if hasattr(m, "reset_parameters") for part in list(m.modules())[1:]}
        for module in self.modules():
            if isinstance(module, nn.Linear) and id(module) not in own:
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (batch, in_chans, H, W) to maps of the last stage, (batch, num_features, height, width)."""
        if (
            x.ndim != 4
            or x.shape[1] != self.stem.conv1.in_channels
            or min(self.stem.grid((x.shape[2], x.shape[3]))) < 1
        ):
            raise ValueError(
                f"expected images (batch, {self.stem.conv1.in_channels}, H, W) of at least {self.stem.patch_size} "
                f"pixels a side, got {tuple(x.shape)}"
            )
        return self.stages(self.stem(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps of the last stage to logits (batch, num_classes); or to what the head sees, with `pre_logits`."""
        x = as_tokens(x)
        x = x.mean(1) if self.global_pool else x
        x = self.head_drop(self.norm(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, in_chans, H, W) to logits (batch, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps of several stages; the arguments are timm's. `norm` applies the final norm to the last stage's."""
        solvers.checks.one_of("output_fmt", output_fmt, ("NCHW", "NHWC"))
        taken, last = feature_take_indices(len(self.stages), indices)
        maps, x = [], self.stem(x)
        for index, stage in enumerate(self.stages):
            if stop_early and index > last:
                break
            x = stage(x)
            if index in taken:
                final = norm and index == len(self.stages) - 1
                kept = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if final else x
                maps.append(kept if output_fmt == "NCHW" else kept.permute(0, 2, 3, 1))
        return maps if intermediates_only else (x, maps)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the layers that maps of the given stages do not need; returns the stages' numbers."""
        taken, last = feature_take_indices(len(self.stages), indices)
        pruned = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_norm or pruned:
            self.norm = nn.Identity()
        if prune_head or pruned:
            self.reset_classifier(0)
        return taken

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head for `num_classes` outputs (0: none), and another pooling if one is given."""
        if global_pool is not None:
            self.global_pool = self.config["global_pool"] = _check_pool(global_pool)
        self.num_classes = self.config["num_classes"] = num_classes
        if num_classes == 0:
            self.head = nn.Identity()
            return
        like = next(self.parameters())
        self.head = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def fuse(self) -> "RobustVisionTransformer":
        """A copy for deployment, in evaluation mode, whose every BatchNorm is folded into the linear map beside it.

        It gives the same logits to rounding in less time. This model stays as it is: train and save this one, as the
        copy has no BatchNorm to train with and other entries in its state dict, which no other model loads.
        """
        fused = copy.deepcopy(self).eval()
        for module in list(fused.modules()):
            fold = getattr(module, "fold_norms", None)
            if fold is not None:
                fold()
        return fused

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass. In training, BatchNorm then counts every batch twice."""
        for stage in self.stages.children():
            stage.grad_checkpointing = enable  # type: ignore[assignment]

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay would pull away from their neutral value."""
        return no_weight_decay(self)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's layer groups, for layer-wise learning rates."""
        blocks = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(?:blocks\.(\d+)|downsample)"
        return {"stem": r"^stem", "blocks": [(blocks, None), (r"^norm", (99999,))]}


def _check_img_size(img_size: int | tuple[int, int]) -> tuple[int, int]:
    sides = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"img_size must be (H, W) or one side, in pixels, got {img_size!r}")
    return (sides[0], sides[1])


def _check_pool(global_pool: str) -> str:
    if global_pool not in ("avg", ""):
        raise ValueError(f"global_pool must be 'avg' or '' (no pooling), got {global_pool!r}")
    return global_pool


def _check_scale(
    base_dims: Sequence[int],
    depths: Sequence[int],
    num_heads: Sequence[int],
    patch_size: int,
    in_chans: int,
    num_classes: int,
) -> None:
    if not len(base_dims) == len(depths) == len(num_heads) > 0:
        raise ValueError(
            "base_dims, depths and num_heads must have one entry per stage, got "
            f"{tuple(base_dims)}, {tuple(depths)} and {tuple(num_heads)}"
        )
    for name, values in (("base_dims", base_dims), ("depths", depths), ("num_heads", num_heads)):
        for value in values:
            solvers.checks.positive_int(f"every entry of {name}", value)
    dims = [width * heads for width, heads in zip(base_dims, num_heads, strict=True)]
    for before, after in itertools.pairwise(dims):
        if after % before:
            raise ValueError(
                f"the width of a stage (base_dims * num_heads) must be a multiple of the one before, got {dims}"
            )
    if patch_size < 4 or patch_size % 4:
        raise ValueError(f"patch_size must be a multiple of 4, got {patch_size!r}")
    solvers.checks.positive_int("in_chans", in_chans)
    if num_classes < 0:
        raise ValueError(f"num_classes must be at least 0, got {num_classes!r}")
