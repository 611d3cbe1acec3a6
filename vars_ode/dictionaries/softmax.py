"""The exact softmax kernel, in dual form: one row of code per token."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vars_ode.dictionaries.dictionary import Dictionary, ReadOut, Reconstruction, Shape, Templates


@dataclass(frozen=True)
class Softmax(Dictionary):
    """Templates in the kernel's feature space, never formed: everything goes through inner products of keys.

    drive b = V, Gram G = D^-1/2 exp(K K^T / sqrt(d)) D^-1/2 with D its row sums (eigenvalues in (0, 1]), and
    read-out softmax(Q K^T / sqrt(d)) a. One Euler step of dt = 1 from zero with eta = 1 and lam = 0 is
    scaled-dot-product attention.
    """

    def build(self, shape: Shape, **factory: Any) -> "SoftmaxTemplates":
        if shape.num_features is not None:
            raise ValueError(
                f'dictionary="softmax" has one template per token, got num_features={shape.num_features}; leave it None'
            )
        if not shape.normalize_queries:
            raise ValueError(
                'dictionary="softmax" has no random features whose queries could be left unnormalised, got '
                "normalize_queries=False; leave it out"
            )
        return SoftmaxTemplates()


@dataclass(frozen=True)
class SoftmaxReadOut(ReadOut):
    """softmax(Q K^T / sqrt(d) + mask) a through torch's fused attention."""

    q: Tensor
    k: Tensor
    mask: Tensor | None
    dropout: float

    def __call__(self, code: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(self.q, self.k, code, attn_mask=self.mask, dropout_p=self.dropout)


class SoftmaxTemplates(Templates):
    """Without parameters: a pretrained transformer's projections are all there is."""

    tied = False
    num_templates = None
    takes_pair_mask = True

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        key_bias: Tensor | None = None,
        pair_mask: Tensor | None = None,
        dropout: float = 0.0,
    ) -> Reconstruction:
        mask = pair_mask if pair_mask is not None else key_bias
        drive = v
        if key_bias is not None:
            drive = torch.where(key_bias.transpose(-2, -1).exp() == 0, 0.0, v)
        return Reconstruction(drive, normalized_kernel(k, key_bias), SoftmaxReadOut(q, k, mask, dropout))


def normalized_kernel(k: Tensor, key_bias: Tensor | None = None) -> Tensor:
    """D^-1/2 exp(K K^T / sqrt(d)) D^-1/2 in the log domain, (batch, heads, tokens, tokens).

    A bias scales the template of a token by its exponential: it enters once for the row and once for the column.
    """
    scores = (k * k.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if key_bias is not None:
        scores = scores + key_bias + key_bias.transpose(-2, -1)
    if key_bias is not None:  # tokens taken out: their rows give no sum, nor a gradient, and become zeros below
        out = scores.isneginf().all(-1, keepdim=True)
        half = torch.where(out, 0.0, 0.5 * scores.masked_fill(out, 0.0).logsumexp(-1, keepdim=True))
    else:
        half = 0.5 * scores.logsumexp(-1, keepdim=True)
    return (scores - half - half.transpose(-2, -1)).exp()
