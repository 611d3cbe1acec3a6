"""An active-set method for the lasso: its minimiser to rounding, however ill-conditioned the Gram."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vars_ode.fields import ReconstructionArgs, kkt_residual

ROUNDING = 1e-13  # relative to the drive: a slope that passes lam by less is at lam


@torch.no_grad()
def active_set(code: Tensor, args: ReconstructionArgs, max_changes: int | None = None) -> Tensor:
    """The minimiser of E for every column, from a code that is near it or not.

    On a support S with signs s the optimality conditions are linear, G_SS a_S = b_S - lam s. Each iteration goes from
    the code towards their solution. Where an entry would change its sign it stops there and drops the entry;
    otherwise, where the slope off the support exceeds lam, it adds the entry of the largest excess. Both lower E, so
    no support comes twice, and the number of iterations depends on how many entries differ, not on the conditioning.

    Lee, Battle, Raina & Ng, Efficient sparse coding algorithms, NIPS 2006 (feature-sign search); here with the step to
    the first change of sign instead of the best of them.

    Where it does not lower a column's KKT residual (a singular G_SS, which has no single solution), the column is
    returned as it was.

    Args:
        code: (batch, ..., m, d).
        args: with the Gram as a tensor.
        max_changes: iterations at most; default 4 m, as from zero about m are needed.
    """
    gram: Any = args.gram
    problems = code.shape[:-2]
    grams = gram.expand(*problems, *gram.shape[-2:])
    sparsity = args.sparsity.expand(*problems, 1, 1)
    samples = zip(grams, args.drive.mT, sparsity, code.mT, strict=True)
    most = 4 * code.shape[-2] if max_changes is None else max_changes
    return torch.stack([_sample(*sample, most) for sample in samples]).mT


def _sample(gram: Tensor, drive: Tensor, sparsity: Tensor, code: Tensor, most: int) -> Tensor:
    """Of one sample: gram (..., m, m), drive and code (..., d, m), sparsity (..., 1, 1)."""
    grams = gram.reshape(-1, *gram.shape[-2:])
    owner = torch.arange(len(grams), device=code.device).repeat_interleave(code.shape[-2])  # a Gram per d columns
    drive, lam, start = (part.reshape(len(owner), -1) for part in (drive, sparsity.expand_as(code[..., :1]), code))
    found, signs, left = start.clone(), start.sign(), torch.arange(len(owner), device=code.device)
    for _ in range(most):
        if not len(left):
            break
        found[left], signs[left], changed = _change(
            grams[owner[left]], drive[left], lam[left], found[left], signs[left]
        )
        left = left[changed]
    before, after = (_violation(grams[owner], drive, lam, each) for each in (start, found))
    return torch.where((after < before)[:, None], found, start).view(code.shape)


def _change(gram: Tensor, drive: Tensor, lam: Tensor, code: Tensor, sign: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(code, signs, whether these changed) after one iteration. Gram (n, m, m), lam (n, 1), the others (n, m)."""
    support = sign != 0
    target = _on_support(gram, support, drive - lam * sign)
    crosses = support & ~(target * sign > 0)
    fraction, first = torch.where(crosses, code / (code - target), 2.0).nan_to_num(0.0).min(1)
    drops = crosses.any(1)
    code = torch.lerp(code, target, fraction.clamp(max=1.0)[:, None])
    code[drops, first[drops]] = 0.0
    sign = sign.clone()
    sign[drops, first[drops]] = 0.0

    slope = drive - (gram @ code[..., None])[..., 0]
    excess, worst = torch.where(support, -1.0, slope.abs() - lam).max(1)
    adds = ~drops & (excess > ROUNDING * (1 + drive.abs().amax(1)))
    sign[adds, worst[adds]] = slope[adds, worst[adds]].sign()
    return code, sign, drops | adds


def _on_support(gram: Tensor, support: Tensor, target: Tensor) -> Tensor:
    """a with G_SS a_S = target_S, zero elsewhere."""
    both = support[:, :, None] & support[:, None, :]
    system = torch.where(both, gram, 0.0) + torch.diag_embed((~support).to(gram.dtype))
    return torch.linalg.solve_ex(system, torch.where(support, target, 0.0)[..., None]).result[..., 0]


def _violation(gram: Tensor, drive: Tensor, lam: Tensor, code: Tensor) -> Tensor:
    """The KKT residual of every column, (n,); NaN where the code is not finite."""
    one_column = ReconstructionArgs(drive[..., None], gram, gram.new_ones(()), lam[..., None])
    return kkt_residual(code[..., None], one_column)
