"""Small models of every family that converts, with random weights everywhere, and how their outputs are compared."""

from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from timm.models.metaformer import Attention, LayerNorm2dNoBias, LayerNormNoBias, MetaFormer, SepConv
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A model of timm's, made small.

    Attributes:
        name: of timm's registry; or a class.
        options: keyword arguments.
        size: side of its images.
        left_alone: how many attention layers stay as they are.
    """

    name: str | type[nn.Module]
    options: dict[str, Any] = field(default_factory=dict)
    size: int = 32
    left_alone: int = 0

    def build(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        torch.manual_seed(0)
        options = {"num_classes": 10, **self.options}
        model = timm.create_model(self.name, **options) if isinstance(self.name, str) else self.name(**options)
        return randomized(model.to(dtype).eval())

    def images(self, batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
        generator = torch.Generator().manual_seed(7)
        return torch.randn(batch, 3, self.size, self.size, generator=generator, dtype=torch.float64).to(dtype)


_TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
_EVA = {**_TINY, "num_heads": 4}
_CAFORMER = {"depths": (1, 1, 1, 1), "dims": (16, 16, 32, 64), "token_mixers": [SepConv, SepConv, Attention, Attention]}
_CAFORMER |= {"norm_layers": [LayerNorm2dNoBias] * 2 + [LayerNormNoBias] * 2}
_CSAT = {"dims": (8, 16, 64, 64), "depths": (1, 1, 2, 2), "transformer_depths": (0, 0, 1, 1)}
_GROUPED = {"attn_type": "rope", "qkv_fused": False, "num_kv_heads": 2}
_CROSS = {"img_scale": (1.0, 224 / 240), "embed_dim": (24, 48), "depth": ((1, 2, 0),), "num_heads": (2, 2)}

CASES = {
    "vit": Case("vit_tiny_patch16_224", _TINY),
    "vit, query-key norm": Case("vit_tiny_patch16_224", {**_TINY, "qk_norm": True, "scale_attn_norm": True}),
    "vit, parallel branches": Case("vit_small_patch16_18x2_224", _TINY),
    "vit, post-norm": Case("vit_base_patch16_rpn_224", _TINY),
    "deit3": Case("deit3_small_patch16_224", _TINY),
    "deit, two prefix tokens": Case("deit_tiny_distilled_patch16_224", _TINY),
    "dinov2, registers": Case("vit_small_patch14_reg4_dinov2", _TINY),
    "siglip": Case("vit_base_patch16_siglip_224", {**_TINY, "depth": 2}, left_alone=1),
    "flexivit": Case("flexivit_small", _TINY),
    "hybrid": Case("vit_tiny_r_s16_p8_224", {"embed_dim": 48, "depth": 2, "img_size": 64}, size=64),
    "naflexvit": Case("naflexvit_base_patch16_gap", {"embed_dim": 48, "depth": 2, "num_heads": 3}, size=64),
    "pit": Case("pit_ti_224", {"img_size": 64, "base_dims": (8, 8, 8), "depth": (1, 1, 1)}, size=64),
    "crossvit": Case("crossvit_9_240", {"img_size": 240, **_CROSS}, size=240, left_alone=2),
    "mobilevit": Case("mobilevit_xxs", size=64),
    "csatv2": Case(
        "csatv2", {"dims": (8, 16, 64, 64), "depths": (1, 1, 2, 2), "transformer_depths": (0, 0, 1, 1)}, size=256
    ),
    "vitamin": Case("vitamin_small_224", {"depth": 2, "img_size": 64}, size=64),
    "caformer": Case(MetaFormer, _CAFORMER, size=64),
    "convit": Case("convit_tiny", {"embed_dim": 16, "depth": 4, "local_up_to_layer": 2, "img_size": 32}, left_alone=2),
    "vit, rotary": Case("vit_small_patch16_rope_224", _EVA),
    "vit, rotary, mixed": Case("vit_small_patch16_rope_mixed_224", _EVA),
    "pe_core": Case("vit_pe_core_tiny_patch16_384", _EVA, left_alone=1),
    "eva02": Case("eva02_tiny_patch14_224", _EVA),
    "dinov3": Case("vit_small_patch16_dinov3", _EVA),
    "grouped keys": Case(
        "vit_small_patch16_dinov3", {**_EVA, "attn_type": "rope", "qkv_fused": False, "num_kv_heads": 2}
    ),
    "qwen3": Case("qwen3_vit_88m", {"embed_dim": 48, "depth": 2, "num_heads": 2}, size=64),
    "deepseek": Case("deepseek_vit_412m", {"embed_dim": 48, "depth": 2, "num_heads": 2}, size=56),
}


@torch.no_grad()
def randomized(model: nn.Module) -> nn.Module:
    """Random parameters, with attention that is far from uniform, and where new models have zeros or ones.

    Those are scales of branches, biases and normalisations.
    """
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
        fan_in = parameter[0].numel() if parameter.ndim > 1 and len(parameter) else 1
        parameter.copy_(noise / fan_in**0.5 if fan_in > 1 else 0.7 * parameter + 0.3 * noise)
    return model


def relative_difference(value: Tensor, reference: Tensor) -> float:
    """max |value - reference| / max |reference|."""
    return float((value - reference).abs().max() / reference.abs().max())
