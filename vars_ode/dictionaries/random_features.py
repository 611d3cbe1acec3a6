"""Positive random features of the softmax kernel: exp(q . k) = E_w[phi(q) phi(k)], phi(q) = exp(w . q - |q|^2/2).

Choromanski et al., Rethinking attention with Performers, ICLR 2021, lemma 1; orthogonal rows: section 3.
"""

import math

import torch
from torch import Tensor


def gaussian_projection(heads: int, dim: int, features: int, orthogonal: bool, device: torch.device | None) -> Tensor:
    """Random directions W, (heads, dim, features), standard Gaussian; with `orthogonal` so in blocks of dim."""
    if not orthogonal:
        return torch.randn(heads, dim, features, device=device)
    blocks = -(-features // dim)
    q, r = torch.linalg.qr(torch.randn(heads, blocks, dim, dim, device=device))
    # LAPACK's choice of signs favours one side of the sphere; without it the directions are uniform (Mezzadri 2007)
    directions = q * r.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
    columns = directions.transpose(1, 2).reshape(heads, dim, blocks * dim)[..., :features]
    return columns * torch.randn(heads, dim, features, device=device).norm(dim=1, keepdim=True)


def log_features(q: Tensor, projection: Tensor, normalize: bool) -> Tensor:
    """log phi(q) up to a constant, (batch, heads, tokens, features).

    Args:
        q: (batch, heads, tokens, dim); scaled by dim^-1/4, so that the kernel is exp(q . k / sqrt(dim)).
        projection: W, (heads, dim, features).
        normalize: l2-normalise each query first. Otherwise the features of queries of large norm all underflow.
    """
    projection = projection.to(q.dtype)
    if not normalize:
        q = q * q.shape[-1] ** -0.25
        return (q @ projection).sub_(0.5 * q.square().sum(-1, keepdim=True))
    norm = torch.linalg.vector_norm(q, dim=-1, keepdim=True)
    bounded = norm.clamp_min(1e-12)  # as in F.normalize
    length = (1e12 * norm).clamp_max(1.0)  # of q / bounded, also where the norm is beyond the type
    return ((q / bounded) @ projection).sub_(0.5 * length.square())


def raw_features(log_templates: Tensor) -> Tensor:
    """exp(log_templates), each column over its largest entry, in place: (batch, heads, tokens, features).

    A new tensor of this size costs more than an operation on it.
    """
    return log_templates.sub_(log_templates.detach().amax(-2, keepdim=True)).exp_()


def is_masked(key_bias: Tensor) -> Tensor:
    """Which tokens take no part to rounding, (batch or 1, heads or 1, tokens, 1), by their bias (..., 1, tokens)."""
    return key_bias.transpose(-2, -1) <= math.log(torch.finfo(key_bias.dtype).eps)


def unit_columns(log_templates: Tensor, key_bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """(read, write) templates exp(log_templates) with columns of unit l2 norm over the tokens, by the log domain.

    Write templates, which give drive and Gram, have rows scaled by exp(key_bias), so that masked tokens are zero. Read
    templates, which give the output, have the unscaled rows over the same norm, those of masked tokens no larger than
    the largest of the others. Both are equal without a bias. A factor common to a column cancels, so the largest
    exponent is subtracted first.
    """
    if key_bias is None:
        templates = (log_templates - log_templates.detach().amax(-2, keepdim=True)).exp()
        templates = templates / torch.linalg.vector_norm(templates, dim=-2, keepdim=True)
        return templates, templates
    biased = log_templates + key_bias.transpose(-2, -1)
    peak = biased.detach().amax(-2, keepdim=True)
    peak = torch.where(peak.isinf(), 0.0, peak)  # every token masked: columns of zeros
    write = (biased - peak).exp()
    above = log_templates - peak
    read = torch.where(is_masked(key_bias), above.clamp_max(0), above).exp()
    norm = torch.linalg.vector_norm(write, dim=-2, keepdim=True)
    norm = torch.where(norm > 0, norm, 1.0)
    return read / norm, write / norm
