"""VARS attention by name in timm's registry: `timm.create_model("vit_tiny_patch16_224", attn_layer="vars_d")`."""

from timm.models.vision_transformer import ATTN_LAYERS

from vars_ode.attention import VARSAttention

NAMES: dict[str, type[VARSAttention]] = {
    "vars_d": VARSAttention.configured(dictionary="dynamic"),
    "vars_sd": VARSAttention.configured(dictionary="static+dynamic"),
    "vars_softmax": VARSAttention.configured(dictionary="softmax"),
}
ATTN_LAYERS.update(NAMES)
