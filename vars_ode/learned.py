"""Learned forms: what a layer may learn in addition to its projections and templates.

All are initialised as the identity, so that a new layer computes the same with and without them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

import solvers
from vars_ode.dictionaries import ReadOut, Reconstruction
from vars_ode.fields import FactoredGram, ReconstructionArgs

StepBound = Callable[[Tensor], Tensor]


class LearnedFactor(nn.Module):
    """LISTA (Gregor & LeCun, ICML 2010) as in the authors' later code: Gram K G K, threshold and rate times a scalar.

    Step bound, drive and read-out are those of the plain G, so the field descends no energy.

    Args:
        num_templates: m; K is (m, m) and shared by the heads.
        signed_sparsity: whether the factor of the threshold may be negative, which "soft" does not allow.
    """

    name = "factor"
    no_weight_decay_names: ClassVar[tuple[str, ...]] = ("factor",)

    def __init__(
        self,
        num_templates: int,
        signed_sparsity: bool,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.signed_sparsity = signed_sparsity
        self.factor = nn.Parameter(torch.eye(num_templates, device=device, dtype=dtype))
        self.sparsity_scale = nn.Parameter(torch.ones(1, device=device, dtype=dtype))
        self.rate_scale = nn.Parameter(torch.ones(1, device=device, dtype=dtype))

    def forward(self, problem: Reconstruction, bound: StepBound, sparsity: float) -> tuple[ReconstructionArgs, ReadOut]:
        dtype = problem.gram.dtype
        factor = self.factor.to(dtype)
        scale = self.sparsity_scale if self.signed_sparsity else self.sparsity_scale.abs()
        args = ReconstructionArgs(
            drive=problem.drive,
            # The scalars' gradients are small differences of large sums. In the authors' order of operations, as here,
            # they agree with theirs to 1e-5 in float32, in another to 2e-5.
            gram=FactoredGram(factor @ (problem.gram @ factor)),
            rate=1 / ((1 / bound(problem.gram)) / self.rate_scale.to(dtype)),
            sparsity=sparsity * scale.to(dtype),
        )
        return args, problem.read_out


class LearnedDictionary(nn.Module):
    """Phi K in place of Phi, in drive, Gram and read-out: still a lasso problem, with its energy and guarantees.

    Args:
        num_templates: m; K is (m, m) and shared by the heads.
    """

    name = "dictionary"
    no_weight_decay_names: ClassVar[tuple[str, ...]] = ("mixing",)

    def __init__(
        self, num_templates: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.mixing = nn.Parameter(torch.eye(num_templates, device=device, dtype=dtype))

    def forward(self, problem: Reconstruction, bound: StepBound, sparsity: float) -> tuple[ReconstructionArgs, ReadOut]:
        mixing = self.mixing.to(problem.gram.dtype)
        gram = mixing.T @ problem.gram @ mixing
        drive = mixing.T @ problem.drive
        args = ReconstructionArgs(drive, gram, bound(gram), gram.new_full((), sparsity))
        return args, MixedReadOut(problem.read_out, mixing)


@dataclass(frozen=True)
class MixedReadOut(ReadOut):
    """Phi (K a)."""

    inner: ReadOut
    mixing: Tensor

    def __call__(self, code: Tensor) -> Tensor:
        return self.inner(self.mixing @ code)


class NotLearned(nn.Module):
    """Nothing more to learn: the problem as the dictionary states it."""

    name: Literal[False] = False

    def forward(self, problem: Reconstruction, bound: StepBound, sparsity: float) -> tuple[ReconstructionArgs, ReadOut]:
        gram = problem.gram
        args = ReconstructionArgs(problem.drive, gram, bound(gram), gram.new_full((), sparsity))
        return args, problem.read_out


LEARNED_FORMS = ("factor", "dictionary")


def learned_form(
    name: Literal[False, "factor", "dictionary"], num_templates: int | None, threshold: str, **factory: Any
) -> NotLearned | LearnedFactor | LearnedDictionary:
    """The module for `learned=name` in a layer of `num_templates` templates; a ValueError if there is none."""
    if name is False:
        return NotLearned()
    solvers.checks.one_of("learned form", name, LEARNED_FORMS)
    if num_templates is None:
        raise ValueError(
            f"learned={name!r} needs a fixed number of templates, but this dictionary has one per token; take "
            '"dynamic" or "static+dynamic", or learned=False'
        )
    if name == "dictionary":
        return LearnedDictionary(num_templates, **factory)
    return LearnedFactor(num_templates, signed_sparsity=threshold == "gelu", **factory)
