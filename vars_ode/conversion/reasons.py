"""Why an attention layer is not converted: what it computes beside or instead of softmax(Q K^T / sqrt(d)) V."""

from torch import nn

from vars_ode.layer import ReconstructionLayer

WINDOWS = "it attends within windows, with biases by relative position"
RELATIVE = "its logits have a bias by relative position, which is no inner product of queries and keys"
REDUCED = "its keys and values are fewer than its queries (spatial reduction), so templates cannot be tied to tokens"
CHANNELS = "it attends across channels and not across tokens"
CLASS = "it has queries for class tokens alone, so there is no code of all tokens"
LATENT = "its queries are learned or pooled, not tokens, so there is no code of all tokens"
HEADS = "it mixes the logits of heads (talking heads)"
LINEAR = "it has no softmax over tokens: a linear or additive attention"
MAPS = "it computes on feature maps, with a layout or projections of its own, and not on (batch, tokens, dim)"
BLOCK = "the block computes its attention itself, together with its MLP, and has no attention layer to replace"
DIFFERENCE = "it is a difference of two softmax attentions (differential attention)"
QUERIES = "a single key and value serve all heads (multi-query attention), on feature maps"

# by module and class of timm
REASONS = {
    "timm.layers.attention2d.Attention2d": MAPS,
    "timm.layers.attention2d.MultiQueryAttention2d": QUERIES,
    "timm.layers.attention2d.MultiQueryAttentionV2": QUERIES,
    "timm.layers.attention_pool.AttentionPoolLatent": LATENT,
    "timm.layers.attention_pool.AttentionPoolPrr": LATENT,
    "timm.layers.attention_pool2d.AttentionPool2d": LATENT,
    "timm.layers.attention_pool2d.RotAttentionPool2d": LATENT,
    "timm.layers.bottleneck_attn.BottleneckAttn": RELATIVE,
    "timm.layers.diff_attention.DiffAttention": DIFFERENCE,
    "timm.layers.halo_attn.HaloAttn": WINDOWS,
    "timm.layers.lambda_layer.LambdaLayer": LINEAR,
    "timm.layers.non_local_attn.BatNonLocalAttn": MAPS,
    "timm.layers.non_local_attn.NonLocalAttn": MAPS,
    "timm.models.beit.Attention": RELATIVE,
    "timm.models.cait.ClassAttn": CLASS,
    "timm.models.cait.TalkingHeadAttn": HEADS,
    "timm.models.coat.FactorAttnConvRelPosEnc": LINEAR,
    "timm.models.convit.GPSA": "it blends softmax attention with attention by position, by a learned gate",
    "timm.models.cpubone.ConvAttention": MAPS,
    "timm.models.crossvit.CrossAttention": CLASS,
    "timm.models.davit.ChannelAttention": CHANNELS,
    "timm.models.davit.ChannelAttentionV2": CHANNELS,
    "timm.models.davit.WindowAttention": "it attends within windows of its own layout",
    "timm.models.edgenext.CrossCovarianceAttn": CHANNELS,
    "timm.models.efficientformer.Attention": RELATIVE,
    "timm.models.efficientformer_v2.Attention2d": RELATIVE,
    "timm.models.efficientformer_v2.Attention2dDownsample": RELATIVE,
    "timm.models.efficientvit_mit.LiteMLA": LINEAR,
    "timm.models.efficientvit_msra.CascadedGroupAttention": RELATIVE,
    "timm.models.fastvit.Attention": MAPS,
    "timm.models.gcvit.WindowAttentionGlobal": WINDOWS,
    "timm.models.gemma4_vit.Gemma4Attention": "it normalises values too and scales its logits by 1, not 1 / sqrt(d)",
    "timm.models.hiera.MaskUnitAttention": "it attends within mask units and pools its queries",
    "timm.models.hieradet_sam2.MultiScaleAttention": "it attends within windows and pools its queries",
    "timm.models.iformer.SHMA": MAPS,
    "timm.models.levit.Attention": RELATIVE,
    "timm.models.levit.AttentionDownsample": RELATIVE,
    "timm.models.lowformer.ConvAttention": MAPS,
    "timm.models.maxxvit.Attention2d": RELATIVE,
    "timm.models.maxxvit.AttentionCl": WINDOWS,
    "timm.models.mobilevit.LinearSelfAttention": LINEAR,
    "timm.models.mvitv2.MultiScaleAttention": "it pools queries, keys and values, with biases by relative position",
    "timm.models.mvitv2.MultiScaleAttentionPoolFirst": "it pools its input, with biases by relative position",
    "timm.models.nest.Attention": "it attends within blocks of the image",
    "timm.models.nextvit.ConvAttention": MAPS,
    "timm.models.nextvit.EfficientAttention": REDUCED,
    "timm.models.pvt_v2.Attention": REDUCED,
    "timm.models.shvit.SHSA": MAPS,
    "timm.models.swiftformer.EfficientAdditiveAttention": LINEAR,
    "timm.models.swin_transformer.WindowAttention": WINDOWS,
    "timm.models.swin_transformer_v2.WindowAttention": WINDOWS,
    "timm.models.swin_transformer_v2_cr.WindowMultiHeadAttention": WINDOWS,
    "timm.models.tiny_vit.Attention": WINDOWS,
    "timm.models.tnt.Attention": "its queries and keys have another width than its values",
    "timm.models.twins.GlobalSubSampleAttn": REDUCED,
    "timm.models.twins.LocallyGroupedAttn": "it attends within windows",
    "timm.models.vision_transformer.DiffParallelScalingBlock": BLOCK,
    "timm.models.vision_transformer.ParallelScalingBlock": BLOCK,
    "timm.models.vision_transformer_relpos.RelPosAttention": RELATIVE,
    "timm.models.vision_transformer_sam.Attention": RELATIVE,
    "timm.models.visformer.Attention": MAPS,
    "timm.models.volo.Attention": MAPS,
    "timm.models.volo.ClassAttention": CLASS,
    "timm.models.volo.OutlookAttention": "its weights are a linear map of each token (outlook attention)",
    "timm.models.xcit.XCA": CHANNELS,
}
_ALREADY = "it is a VARS layer already; set_solver changes how it is solved"
_UNKNOWN = "it is a {}, whose computation is not known here"
# Named like attention, and either gates of convolutional networks or blocks around one of the layers above.
OTHERS = frozenset(
    {"ChannelAttn", "LightChannelAttn", "SpatialAttn", "LightSpatialAttn", "CoordAttn", "SimpleCoordAttn"}
    | {"EfficientLocalAttn", "StripAttn", "SplitAttn", "SelectiveKernelAttn", "SpatialAttention", "MobileAttention"}
    | {"LayerScaleBlockClassAttn", "LocalWindowAttention", "ParallelPartitionAttention"}
)


def why_left_alone(module: nn.Module) -> str | None:
    """The reason why a layer of another contract is not converted; None for what is no self-attention."""
    kind = type(module)
    if isinstance(module, ReconstructionLayer):
        return _ALREADY
    reason = REASONS.get(f"{kind.__module__}.{kind.__qualname__}")
    if reason is not None or kind.__name__ in OTHERS:
        return reason
    named_so = any(base.__name__.lower().endswith(("attention", "attn")) for base in kind.__mro__)
    return _UNKNOWN.format(kind.__name__) if named_so else None
