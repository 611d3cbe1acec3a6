"""Models in timm's registry: `timm.create_model("rvt_tiny", attention="vars-d", num_classes=10, img_size=224)`."""

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer

from vars_ode.models.rvt import RobustVisionTransformer

__all__: list[str] = []  # timm's decorator adds the names

SCALES: dict[str, dict[str, tuple[int, ...]]] = {
    "tiny": {"base_dims": (32, 32), "depths": (10, 2), "num_heads": (6, 12)},
    "small": {"base_dims": (64,), "depths": (12,), "num_heads": (6,)},
    "base": {"base_dims": (64,), "depths": (12,), "num_heads": (12,)},
}

_CFG: dict[str, Any] = {
    "url": "",
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": None,
    "crop_pct": 0.9,
    "interpolation": "bicubic",
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "first_conv": "stem.conv1",
    "classifier": "head",
}
_SMALL_CFG: dict[str, Any] = {  # of images in [0, 1], which are not normalised
    "url": "",
    "num_classes": 10,
    "input_size": (1, 28, 28),
    "mean": (0.0,),
    "std": (1.0,),
    "first_conv": "patch_embed.proj",
    "classifier": "head",
}
default_cfgs = generate_default_cfgs(
    {
        **{f"rvt_{scale}{plus}.untrained": dict(_CFG) for scale in SCALES for plus in ("", "_plus")},
        "vit_nano_patch4_28.untrained": _SMALL_CFG,
    }
)


def _create(name: str, pretrained: bool, **options: Any) -> RobustVisionTransformer:
    scale = SCALES[name.removeprefix("rvt_").removesuffix("_plus")]
    options = {**scale, "position_scaling": name.endswith("_plus"), **options}
    _check_source(name, pretrained, options)
    indices = tuple(range(len(options["depths"])))
    feature_cfg = {"out_indices": indices, "feature_cls": "getter"}
    return build_model_with_cfg(RobustVisionTransformer, name, pretrained, feature_cfg=feature_cfg, **options)


def _check_source(name: str, pretrained: bool, options: dict[str, Any]) -> None:
    """Weights there are in the user's own folders alone, as in timm.create_model("local-dir:...", pretrained=True)."""
    config = options.get("pretrained_cfg")
    if pretrained and not (isinstance(config, dict) and config.get("file")):
        raise ValueError(f"there are no published weights for {name} here; load a file with vars_ode.load_checkpoint")


@register_model
def vit_nano_patch4_28(pretrained: bool = False, **options: Any) -> VisionTransformer:
    """A vision transformer for 28 x 28 grey images that trains in minutes on one core: 64 wide, 3 blocks, 4 heads."""
    _check_source("vit_nano_patch4_28", pretrained, options)
    small = {"img_size": 28, "patch_size": 4, "in_chans": 1, "embed_dim": 64, "depth": 3, "num_heads": 4}
    shape = {**small, "mlp_ratio": 2.0, "class_token": False, "global_pool": "avg"}
    return build_model_with_cfg(VisionTransformer, "vit_nano_patch4_28", pretrained, **{**shape, **options})


@register_model
def rvt_tiny(pretrained: bool = False, **options: Any) -> RobustVisionTransformer:
    """RVT-Ti: 192 wide, 10 blocks, then 384 wide, 2 blocks."""
    return _create("rvt_tiny", pretrained, **options)


@register_model
def rvt_small(pretrained: bool = False, **options: Any) -> RobustVisionTransformer:
    """RVT-S: 384 wide, 12 blocks."""
    return _create("rvt_small", pretrained, **options)


@register_model
def rvt_base(pretrained: bool = False, **options: Any) -> RobustVisionTransformer:
    """RVT-B: 768 wide, 12 blocks."""
    return _create("rvt_base", pretrained, **options)


@register_model
def rvt_tiny_plus(pretrained: bool = False, **options: Any) -> RobustVisionTransformer:
    """RVT-Ti with position-aware attention scaling, softmax attention only."""
    return _create("rvt_tiny_plus", pretrained, **options)


@register_model
def rvt_small_plus(pretrained: bool = False, **options: Any) -> RobustVisionTransformer:
    """RVT-S with position-aware attention scaling, softmax attention only."""
    return _create("rvt_small_plus", pretrained, **options)


@register_model
def rvt_base_plus(pretrained: bool = False, **options: Any) -> RobustVisionTransformer:
    """RVT-B with position-aware attention scaling, softmax attention only."""
    return _create("rvt_base_plus", pretrained, **options)
