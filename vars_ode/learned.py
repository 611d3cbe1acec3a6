"""Learned forms: what a layer may learn in addition to its projections and templates.

All are initialised as the identity, so that a new layer computes the same with and without them.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import solvers
from vars_ode.dictionaries import ReadOut, Reconstruction
from vars_ode.fields import ReconstructionArgs
from vars_ode.grams import FactoredGram, GramOperator, MonotoneGram, shifted
from vars_ode.rates import StepBound
from vars_ode.representation import tensor_repr


class LearnedForm(nn.Module, ABC):
    """What a layer makes of the problem that its dictionary states."""

    name: ClassVar[str | bool]

    @abstractmethod
    def forward(
        self, problem: Reconstruction, bound: StepBound, sparsity: float, ridge: float = 0.0
    ) -> tuple[ReconstructionArgs, ReadOut]:
        """The problem that is solved, and its read-out.

        Args:
            problem: the dictionary's.
            bound: the rate for a Gram.
            sparsity: lam.
            ridge: mu / L, with L = 1 / rate of the Gram in use: 1/2 mu |a|^2 is added to the energy.
        """


def _args(
    drive: Tensor, gram: Tensor | GramOperator, rate: Tensor, sparsity: Tensor, ridge: float
) -> ReconstructionArgs:
    """With a ridge of mu = ridge / rate, the bound L grows by mu, so that the rate becomes 1 / (L + mu)."""
    if ridge:
        gram, rate = shifted(gram, ridge / rate), rate / (1 + ridge)
    return ReconstructionArgs(drive, gram, rate, sparsity)


class LearnedFactor(LearnedForm):
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

    def forward(
        self, problem: Reconstruction, bound: StepBound, sparsity: float, ridge: float = 0.0
    ) -> tuple[ReconstructionArgs, ReadOut]:
        plain_gram = problem.gram
        dtype = plain_gram.dtype
        factor = self.factor.to(dtype)
        scale = self.sparsity_scale if self.signed_sparsity else self.sparsity_scale.abs()
        # The scalars' gradients are small differences of large sums. In the authors' order of operations, as here, they
        # agree with theirs to 1e-5 in float32, in another to 2e-5.
        plain = bound(plain_gram)
        gram = FactoredGram(factor @ (plain_gram @ factor))
        rate = 1 / ((1 / plain) / self.rate_scale.to(dtype))
        args = ReconstructionArgs(problem.drive, gram, rate, sparsity * scale.to(dtype))
        if ridge:
            args = args._replace(gram=gram.shifted(ridge / plain), rate=rate / (1 + ridge))
        return args, problem.read_out


class LearnedDictionary(LearnedForm):
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

    def forward(
        self, problem: Reconstruction, bound: StepBound, sparsity: float, ridge: float = 0.0
    ) -> tuple[ReconstructionArgs, ReadOut]:
        mixing = self.mixing.to(problem.gram.dtype)
        gram = mixing.T @ problem.gram @ mixing
        drive = mixing.T @ problem.drive
        args = _args(drive, gram, bound(gram), gram.new_full((), sparsity), ridge)
        return args, MixedReadOut(problem.read_out, mixing)


class LearnedCoupling(LearnedForm):
    """H = K^T G K in place of the Gram, drive and read-out as they are: the principled form of `LearnedFactor`.

    1/2 a^T H a - b^T a + lam |a|_1 is convex, so energy, optimality conditions, every equilibrium solver and the
    implicit gradient hold, with the step bound from H.

    Args:
        num_templates: m; K is (m, m) and shared by the heads.
    """

    name = "coupling"
    no_weight_decay_names: ClassVar[tuple[str, ...]] = ("coupling",)

    def __init__(
        self, num_templates: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.coupling = nn.Parameter(torch.eye(num_templates, device=device, dtype=dtype))

    def symmetric_part(self, gram: Tensor) -> Tensor:
        """K^T G K."""
        coupling = self.coupling.to(gram.dtype)
        return coupling.T @ (gram @ coupling)

    def forward(
        self, problem: Reconstruction, bound: StepBound, sparsity: float, ridge: float = 0.0
    ) -> tuple[ReconstructionArgs, ReadOut]:
        gram = self.symmetric_part(problem.gram)
        return _args(problem.drive, gram, bound(gram), gram.new_full((), sparsity), ridge), problem.read_out


class LearnedMonotone(LearnedCoupling):
    """H = K^T G K + (M G - G M^T): the coupling, and a rotation that no energy has.

    The second part is skew-symmetric, so H is monotone, and with a ridge mu strongly monotone: there is one equilibrium
    (Winston & Kolter, Monotone operator equilibrium networks, NeurIPS 2020). With L the bound of the symmetric part S
    and A the other one, steps of eta <= 1 / (L + |A|^2 / mu) are non-expansive, since

        |x - eta (S + A) x|^2 <= |x|^2 - 2 eta x^T S x + 2 eta^2 (|S x|^2 + |A x|^2),
        |S x|^2 <= L x^T S x,    |A x|^2 <= (|A|^2 / mu) x^T S x.

    Without a ridge nothing is guaranteed, and eta = 1 / (L + |A|).

    Args:
        num_templates: m; K, which starts at I, and M, at 0, are (m, m) and shared by the heads.
    """

    name = "monotone"

    def __init__(
        self, num_templates: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(num_templates, device, dtype)
        self.rotation = nn.Parameter(torch.zeros(num_templates, num_templates, device=device, dtype=dtype))

    def forward(
        self, problem: Reconstruction, bound: StepBound, sparsity: float, ridge: float = 0.0
    ) -> tuple[ReconstructionArgs, ReadOut]:
        gram = problem.gram
        positive = self.symmetric_part(gram)
        turned = self.rotation.to(gram.dtype) @ gram
        skew = turned - turned.mT
        rate = bound(positive)
        mu = ridge / rate
        if not bound.is_fixed:
            limit, size = 1 / rate, 1 / bound(skew)
            rate = 1 / (limit + mu + size**2 / mu) if ridge else 1 / (limit + size)
        operator = MonotoneGram(positive + skew)
        args = ReconstructionArgs(
            problem.drive, operator.shifted(mu) if ridge else operator, rate, gram.new_full((), sparsity)
        )
        return args, problem.read_out


@dataclass(frozen=True)
class MixedReadOut(ReadOut):
    """Phi (K a)."""

    inner: ReadOut
    mixing: Tensor

    __repr__ = tensor_repr

    def __call__(self, code: Tensor) -> Tensor:
        return self.inner(self.mixing @ code)


class NotLearned(LearnedForm):
    """Nothing more to learn: the problem as the dictionary states it."""

    name = False

    def forward(
        self, problem: Reconstruction, bound: StepBound, sparsity: float, ridge: float = 0.0
    ) -> tuple[ReconstructionArgs, ReadOut]:
        gram = problem.gram
        args = _args(problem.drive, gram, bound(gram), gram.new_full((), sparsity), ridge)
        return args, problem.read_out


LEARNED_FORMS = ("factor", "coupling", "monotone", "dictionary")
_PRINCIPLED: dict[str, type[LearnedCoupling | LearnedDictionary]] = {
    "coupling": LearnedCoupling,
    "monotone": LearnedMonotone,
    "dictionary": LearnedDictionary,
}


def learned_form(name: str | bool, num_templates: int | None, threshold: str, **factory: Any) -> LearnedForm:
    """The module for `learned=name` of a layer with that many templates; a ValueError where there is none."""
    if name is False:
        return NotLearned()
    solvers.checks.one_of("learned form", name, LEARNED_FORMS)
    if num_templates is None:
        raise ValueError(
            f"learned={name!r} needs a fixed number of templates, but this dictionary has one per token; take "
            '"dynamic" or "static+dynamic", or learned=False'
        )
    if name == "factor":
        return LearnedFactor(num_templates, signed_sparsity=threshold == "gelu", **factory)
    return _PRINCIPLED[str(name)](num_templates, **factory)
