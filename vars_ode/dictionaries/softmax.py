"""The exact softmax kernel, in dual form: the code has one row per token."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from solvers.tracing import is_transformed
from vars_ode.dictionaries.dictionary import Dictionary, ReadOut, Reconstruction, Shape, Templates
from vars_ode.representation import tensor_repr


@dataclass(frozen=True)
class Softmax(Dictionary):
    """Templates in the feature space of the softmax kernel, which are not formed: inner products of keys suffice.

    drive b = V, Gram G = D^-1/2 exp(K K^T / sqrt(d)) D^-1/2 with D its row sums (eigenvalues in (0, 1]), and
    read-out softmax(Q K^T / sqrt(d)) a. One Euler step of dt = 1 from zero with eta = 1 and lam = 0 is
    scaled-dot-product attention.
    """

    def build(self, shape: Shape, **factory: Any) -> "SoftmaxTemplates":
        if shape.num_features is not None:
            raise ValueError(
                f'dictionary="softmax" has one template per token, got num_features={shape.num_features}; omit it'
            )
        if not shape.normalize_queries:
            raise ValueError(
                'dictionary="softmax" has no random features, and so no use for normalize_queries=False; omit it'
            )
        return SoftmaxTemplates()


@dataclass(frozen=True)
class SoftmaxReadOut(ReadOut):
    """softmax(Q K^T / sqrt(d) + mask) a, by torch's fused attention where its derivatives are enough."""

    q: Tensor
    k: Tensor
    mask: Tensor | None
    dropout: float

    __repr__ = tensor_repr

    def __call__(self, code: Tensor) -> Tensor:
        inputs = (self.q, self.k, code)
        if not self.dropout and is_transformed(inputs):  # the fused kernels have no forward mode
            return attention_weights(self.q, self.k, self.mask) @ code
        output = F.scaled_dot_product_attention(*inputs, attn_mask=self.mask, dropout_p=self.dropout)
        recorded = torch.is_grad_enabled() and output.requires_grad and not torch.compiler.is_compiling()
        return _TwiceDifferentiable.apply(output, *inputs, self.mask) if recorded and not self.dropout else output


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(Q K^T / sqrt(d) + mask), (batch, heads, tokens, tokens); rows without any key are zero."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if mask is None:
        return logits.softmax(-1)
    logits = logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask
    empty = logits.isneginf().all(-1, keepdim=True)
    return torch.where(empty, 0.0, torch.where(empty, 0.0, logits).softmax(-1))


class _TwiceDifferentiable(torch.autograd.Function):
    """Passes the output of fused attention on, whose gradient has no derivative itself.

    Where a graph of the gradient is asked for (create_graph=True), the gradient is built of plain operations instead.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        ctx.save_for_backward(q, k, v, mask)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            return grad, None, None, None, None
        q, k, v, mask = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        weights = attention_weights(q, k, mask)
        grad_weights = grad @ v.transpose(-2, -1)
        grad_logits = weights * (grad_weights - (weights * grad_weights).sum(-1, keepdim=True))
        of_mask = grad_logits.sum_to_size(mask.shape) if ctx.needs_input_grad[4] else None
        grad_q, grad_k = scale * (grad_logits @ k), scale * (grad_logits.transpose(-2, -1) @ q)
        return None, grad_q, grad_k, weights.transpose(-2, -1) @ grad, of_mask


class SoftmaxTemplates(Templates):
    """Has no parameters, so that the projections of a pretrained transformer fit the layer."""

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
        return Reconstruction(drive, lambda: normalized_kernel(k, key_bias), SoftmaxReadOut(q, k, mask, dropout))


def normalized_kernel(k: Tensor, key_bias: Tensor | None = None) -> Tensor:
    """D^-1/2 exp(K K^T / sqrt(d)) D^-1/2 in the log domain, (batch, heads, tokens, tokens).

    A bias scales the template of a token by its exponential, and so its row and its column of the kernel.
    """
    scores = (k * k.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if key_bias is not None:
        scores = scores + key_bias + key_bias.transpose(-2, -1)
    if key_bias is not None:  # rows of masked tokens have no finite sum; they become zeros below, without a gradient
        out = scores.isneginf().all(-1, keepdim=True)
        half = torch.where(out, 0.0, 0.5 * scores.masked_fill(out, 0.0).logsumexp(-1, keepdim=True))
    else:
        half = 0.5 * scores.logsumexp(-1, keepdim=True)
    return (scores - half - half.transpose(-2, -1)).exp()
