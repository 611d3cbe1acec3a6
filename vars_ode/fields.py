"""Sparse reconstruction as a vector field, its energy and its optimality conditions.

A dictionary of m templates Phi (tokens x m) reconstructs the values V (tokens x d) with a sparse code a (m x d):

    E(a) = 1/2 |V - Phi a|^2 + lam |a|_1         drive b = Phi^T V        Gram G = Phi^T Phi

The equilibria of two fields are exactly its minimisers. With rate eta > 0 and S(x; t) = sign(x) max(|x| - t, 0):

    LCA             u' = -u + a + eta (b - G a),   a = S(u; eta lam)         state u: membrane potential
    ProximalFlow    a' = S(a - eta (G a - b); eta lam) - a                   state a: the code (firing rate)

Rozell, Johnson, Baraniuk & Olshausen, Sparse coding via thresholding and local competition in neural circuits, Neural
Computation 2008 (LCA, eta = 1); Shi et al., Visual attention emerges from recurrent sparse reconstruction, ICML 2022.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import solvers
from solvers.tracing import is_transformed
from vars_ode.grams import FactoredGram as FactoredGram
from vars_ode.grams import GramOperator as GramOperator
from vars_ode.grams import MonotoneGram as MonotoneGram
from vars_ode.grams import solve_on_support
from vars_ode.representation import tensor_repr


class ReconstructionArgs(NamedTuple):
    """The reconstruction problem, the `args` of the fields.

    Attributes:
        drive: b = Phi^T V, (..., m, d).
        gram: G = Phi^T Phi, (..., m, m), symmetric; or a `GramOperator`.
        rate: eta, broadcasts against (..., 1, 1). E never rises along Euler steps of dt <= 1 for eta <= 1 / |G|_2.
        sparsity: lam, broadcasts against (..., 1, 1).
    """

    drive: Tensor
    gram: Tensor | GramOperator
    rate: Tensor
    sparsity: Tensor

    def __repr__(self) -> str:
        return tensor_repr(self)

    @property
    def dense_gram(self) -> Tensor:
        """The Gram as a tensor; a ValueError if it is a `GramOperator`."""
        if isinstance(self.gram, Tensor):
            return self.gram
        raise ValueError(f"the Gram of this problem is a {type(self.gram).__name__}, which is not formed as a tensor")


def why_no_energy(field: Any, args: Any) -> str | None:
    """The reason why a field descends no energy on a problem, in a sentence; None if it descends E."""
    if not isinstance(args, ReconstructionArgs):
        return f"{type(field).__name__} is not a field of sparse reconstruction"
    threshold = getattr(field, "threshold", None)
    if threshold != "soft":
        return f'threshold="{threshold}" is not the proximal operator of |a|_1; threshold="soft" is'
    return getattr(args.gram, "why_no_energy", None)


def soft_threshold(x: Tensor, threshold: Tensor | float) -> Tensor:
    """S(x; t) = sign(x) max(|x| - t, 0), the proximal operator of t|x|_1, for t >= 0.

    Args:
        x: any shape.
        threshold: t, broadcasts against `x`.
    """
    if not isinstance(threshold, Tensor):
        return x - x.clamp(-threshold, threshold)
    if is_transformed((x, threshold)):
        return _SoftThresholdBothModes.apply(x, threshold)
    if torch.is_grad_enabled():
        return _SoftThreshold.apply(x, threshold)
    return _SoftThreshold.forward(x, threshold)


class _SoftThreshold(torch.autograd.Function):
    """The derivatives follow from the sign of the result in few passes over memory; autograd through clamp takes nine.
    All is arithmetic, minima and maxima, as clamp by a tensor, comparisons and `where` take several times as long on a
    CPU."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, threshold: Tensor) -> Tensor:
        clamped = torch.minimum(x, threshold)
        if clamped.shape != x.shape or is_transformed((x, threshold)) or torch.compiler.is_compiling():
            return x - torch.maximum(clamped, -threshold)
        return torch.sub(x, torch.maximum(clamped, -threshold, out=clamped), out=clamped)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output, inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        result, threshold = ctx.saved_tensors
        sign = result.sign()
        signed = grad * sign
        no_threshold = (threshold == 0).to(grad.dtype)  # S(x; 0) = x, also at x = 0
        grad_x = torch.lerp(signed * sign, grad, no_threshold)
        if not ctx.needs_input_grad[1]:
            return grad_x, None
        return grad_x, -signed.sum_to_size(threshold.shape)


class _SoftThresholdBothModes(_SoftThreshold):
    """With forward-mode derivatives as well; of its own, since torch.compile takes no function that has them."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output, inputs[1])
        ctx.save_for_forward(output, inputs[1])  # held for as long as the graph, also under checkpointing

    @staticmethod
    def jvp(ctx: Any, tangent_x: Tensor, tangent_threshold: Tensor) -> Tensor:
        result, threshold = ctx.saved_tensors
        sign = result.sign()
        return torch.where(threshold == 0, tangent_x, tangent_x * sign * sign) - tangent_threshold * sign


def gelu_threshold(x: Tensor, threshold: Tensor | float) -> Tensor:
    """S(x; t) = sign(x) gelu(|x| - t), of the authors' later code. It is no proximal operator: the energy may rise, no
    entry is exactly zero, and the fixed points are not those of the lasso."""
    return x.sign() * F.gelu(x.abs() - threshold)


THRESHOLDS: dict[str, Callable[[Tensor, Tensor | float], Tensor]] = {"soft": soft_threshold, "gelu": gelu_threshold}


def energy(a: Tensor, args: ReconstructionArgs) -> Tensor:
    """E(a) without its constant 1/2|V|^2: 1/2 a^T G a - b^T a + lam |a|_1, summed over the code, (...).

    Args:
        a: code, (..., m, d).
        args: the problem; the rate is not used.
    """
    _require_energy(args)
    quadratic = 0.5 * a * (args.gram @ a) - args.drive * a
    return (quadratic + args.sparsity * a.abs()).sum((-2, -1))


def kkt_residual(a: Tensor, args: ReconstructionArgs) -> Tensor:
    """The violation of the optimality conditions of E at `a`, in units of the drive: the max norm per problem, (...).

    The conditions are |b - G a| <= lam where a = 0 and b - G a = lam sign(a) elsewhere. For a monotone operator, which
    has no minimiser, it is the residual max|f| of `ProximalFlow` instead, zero at the equilibrium.
    """
    if isinstance(args.gram, MonotoneGram):
        return ProximalFlow()(None, a, args).abs().amax((-2, -1))
    _require_energy(args)
    slope = args.drive - args.gram @ a
    at_zero = (slope.abs() - args.sparsity).clamp_min(0)
    elsewhere = (slope - args.sparsity * a.sign()).abs()
    return torch.where(a == 0, at_zero, elsewhere).amax((-2, -1))


def _require_energy(args: ReconstructionArgs) -> None:
    if reason := getattr(args.gram, "why_no_energy", None):
        raise ValueError(f"there is no energy and no optimality condition to evaluate: {reason}")


@dataclass(frozen=True)
class _SparseReconstruction:
    """What both fields share: the threshold, what solvers may know of them, and E split into two parts.

    The parts are a quadratic one and lam |a|_1; `solvers.DouglasRachford` uses them.
    """

    threshold: str = "soft"
    natural_step: ClassVar[float] = 1.0
    linear_rate: ClassVar[float] = 1.0
    contractive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        solvers.checks.one_of("threshold", self.threshold, THRESHOLDS)

    def require_gradient(self, args: ReconstructionArgs) -> None:
        """Momentum (`solvers.Nesterov`) presumes steps along a gradient, which a rotation is not: ValueError."""
        if isinstance(args.gram, MonotoneGram):
            raise ValueError(
                f"momentum needs steps along a gradient: {args.gram.why_no_energy}. Take solver='douglas_rachford', "
                "'fixed_point' or 'anderson'"
            )

    def _step(self, args: ReconstructionArgs) -> Callable[[Tensor], Tensor]:
        """a -> a + eta (b - G a) = (I - eta G) a + eta b, for many a."""
        matrix, drive, rate = _dense(args), args.drive, args.rate
        if matrix is None:
            return lambda a: torch.addcmul(a, rate, drive - args.gram @ a)
        identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        return affine(rate * drive, identity - rate * matrix)

    def _shrink(self, args: ReconstructionArgs) -> Callable[[Tensor], Tensor]:
        """x -> S(x; eta lam), for many x, which are overwritten."""
        threshold = args.rate * args.sparsity
        if self.threshold != "soft":
            return lambda x: THRESHOLDS[self.threshold](x, threshold)
        negative = -threshold

        def shrink(x: Tensor) -> Tensor:
            clamped = torch.minimum(x, threshold)
            return torch.sub(x, torch.maximum(clamped, negative, out=clamped), out=x)

        return shrink

    def prox(self, v: Tensor, step: float, args: ReconstructionArgs) -> Tensor:
        """argmin_a lam |a|_1 + |a - v|^2 / (2 step) = S(v; step lam), (..., m, d)."""
        return soft_threshold(v, step * args.sparsity)

    def resolvent(self, v: Tensor, rho: float, args: ReconstructionArgs) -> Tensor:
        """(G + rho I)^-1 (b + rho v), (..., m, d)."""
        return self.factorise(rho, args)(v)

    def factorise(self, rho: float, args: ReconstructionArgs) -> Callable[[Tensor], Tensor]:
        """v -> resolvent(v, rho, args) by one Cholesky factorisation; NaN if G + rho I is not positive definite.

        A `GramOperator` has its own resolvent.
        """
        if not isinstance(args.gram, MonotoneGram):
            _require_energy(args)
        if self.threshold != "soft":
            raise ValueError(
                f"the threshold {self.threshold!r} is no proximal operator, so there is no problem to split; use "
                'threshold="soft", or a solver that needs only the value of the field, such as "fixed_point"'
            )
        gram = args.gram
        if isinstance(gram, MonotoneGram):
            return _by_lu(gram.matrix, rho, args.drive)
        if not isinstance(gram, Tensor):
            return lambda v: gram.resolvent(args.drive + rho * v, rho)
        shifted = gram + rho * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        factor, info = torch.linalg.cholesky_ex(shifted)
        factor = factor + torch.where(info > 0, float("nan"), 0.0)[..., None, None].to(factor.dtype)
        # Forward mode too, in which torch's derivative of cholesky_inverse is wrong.
        if (shifted.requires_grad and torch.is_grad_enabled()) or is_transformed([shifted]):
            return lambda v: torch.cholesky_solve(args.drive + rho * v, factor)
        # A product is five times as fast as two triangular solves, and G + rho I is well conditioned: |G| / rho.
        inverse = torch.cholesky_inverse(factor)
        return affine(inverse @ args.drive, rho * inverse)


def _dense(args: ReconstructionArgs) -> Tensor | None:
    """H as a tensor, where it is one or holds one."""
    gram: Any = args.gram
    return gram if isinstance(gram, Tensor) else getattr(gram, "matrix", None)


def _slope(a: Tensor, args: ReconstructionArgs) -> Tensor:
    """b - H a, by one product where shapes allow it, with no further pass over memory.

    Not where gradients are recorded: that of this product with respect to H takes a pass over a matrix more.
    """
    matrix = _dense(args)
    fits = matrix is not None and a.ndim > 2 and matrix.shape[:-2] == a.shape[:-2] == args.drive.shape[:-2]
    if torch.is_grad_enabled() or matrix is None or not fits:
        return args.drive - args.gram @ a
    flat = (part.flatten(0, -3) for part in (args.drive, matrix, a))
    return torch.baddbmm(*flat, alpha=-1).view(a.shape)


def _nonzero(code: Tensor) -> Tensor:
    """1 where an entry is not 0, else 0: a comparison and its conversion take four times as long on a CPU."""
    return code.sign().abs_().nan_to_num_(nan=1.0)


def affine(offset: Tensor, matrix: Tensor) -> Callable[[Tensor], Tensor]:
    """v -> offset + M v, for many v: where shapes allow it one product, with no further pass over memory.

    Args:
        offset: (..., m, d).
        matrix: M, broadcasts against (..., m, m).
    """
    if offset.ndim < 3 or matrix.shape[:-2] != offset.shape[:-2]:
        return lambda v: offset + matrix @ v
    added, factor, flat = offset.flatten(0, -3), matrix.flatten(0, -3), (-1, *offset.shape[-2:])
    return lambda v: torch.baddbmm(added, factor, v.reshape(flat)).view(v.shape)


def _by_lu(matrix: Tensor, rho: float, drive: Tensor) -> Callable[[Tensor], Tensor]:
    """The resolvent of a matrix that is not symmetric, by one LU factorisation."""
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    factors, pivots, _ = torch.linalg.lu_factor_ex(matrix + rho * identity)
    return lambda v: torch.linalg.lu_solve(factors, pivots, drive + rho * v)


@dataclass(frozen=True)
class ProximalFlow(_SparseReconstruction):
    """a' = S(a - eta (G a - b); eta lam) - a. Euler with dt = 1 is ISTA with step eta.

    Args:
        threshold: S, "soft" or "gelu".
    """

    def __call__(self, t: Any, a: Tensor, args: ReconstructionArgs) -> Tensor:
        """da/dt, shaped as `a`, (..., m, d)."""
        return self.iterate(a, args) - a

    def iterate(self, a: Tensor, args: ReconstructionArgs) -> Tensor:
        """a + da/dt = S(a - eta (G a - b); eta lam), a step of ISTA."""
        moved = torch.addcmul(a, args.rate, _slope(a, args))
        return THRESHOLDS[self.threshold](moved, args.rate * args.sparsity)

    def iteration(self, args: ReconstructionArgs) -> Callable[[Tensor], Tensor]:
        """a -> iterate(a, args), with what does not depend on a made once."""
        step, shrink = self._step(args), self._shrink(args)
        return lambda a: shrink(step(a))

    def code(self, state: Tensor, args: ReconstructionArgs) -> Tensor:
        """The code a of a state: here the state itself."""
        return state

    def state(self, code: Tensor, args: ReconstructionArgs) -> Tensor:
        """The state of an equilibrium whose code is `code`: here the code itself."""
        return code

    def solve_transposed(self, a: Tensor, args: ReconstructionArgs, grad: Tensor) -> Tensor | None:
        """w with -J^T w = grad, J = df/da, on the support of each channel: None where this form is not known.

        With D the mask of the support, J = D (I - eta H) - I, so w = grad + (I - eta H^T) u where eta H_SS^T u_S =
        grad_S and u = 0 off the support.

        Args:
            a: an equilibrium, (..., m, d).
            args: the problem.
            grad: dL/da, (..., m, d).
        """
        matrix = _dense(args)
        if matrix is None or self.threshold != "soft":
            return None
        support = _nonzero(self.iterate(a, args))
        u = solve_on_support(matrix.mT, support, grad, isinstance(args.gram, Tensor)) / args.rate
        return torch.addcmul(grad + u, args.rate, matrix.mT @ u, value=-1)

    def feedforward(self, args: ReconstructionArgs) -> Tensor:
        """The initial state, whose code is S(b; lam)."""
        return THRESHOLDS[self.threshold](args.drive, args.sparsity)


@dataclass(frozen=True)
class LCA(_SparseReconstruction):
    """u' = -u + a + eta (b - G a) with a = S(u; eta lam): Rozell's network at eta = 1.

    Euler with dt = 1 is ISTA with step eta; the membrane potential u is the argument of its threshold.

    Args:
        threshold: S, "soft" or "gelu".
    """

    def __call__(self, t: Any, u: Tensor, args: ReconstructionArgs) -> Tensor:
        """du/dt, shaped as `u`, (..., m, d)."""
        return self.iterate(u, args) - u

    def iterate(self, u: Tensor, args: ReconstructionArgs) -> Tensor:
        """u + du/dt = a + eta (b - G a) with a = S(u; eta lam), a step of ISTA."""
        return self.state(self.code(u, args), args)

    def iteration(self, args: ReconstructionArgs) -> Callable[[Tensor], Tensor]:
        """u -> iterate(u, args), with what does not depend on u made once."""
        step, threshold = self._step(args), args.rate * args.sparsity
        return lambda u: step(THRESHOLDS[self.threshold](u, threshold))

    def code(self, state: Tensor, args: ReconstructionArgs) -> Tensor:
        """The code a = S(u; eta lam) of the membrane potentials u."""
        return THRESHOLDS[self.threshold](state, args.rate * args.sparsity)

    def state(self, code: Tensor, args: ReconstructionArgs) -> Tensor:
        """The potentials u = a + eta (b - G a) of an equilibrium whose code is `code`."""
        return torch.addcmul(code, args.rate, _slope(code, args))

    def solve_transposed(self, u: Tensor, args: ReconstructionArgs, grad: Tensor) -> Tensor | None:
        """As of `ProximalFlow`; here J = (I - eta H) D - I: w = grad off the support, and eta (H^T w)_S = grad_S."""
        matrix = _dense(args)
        if matrix is None or self.threshold != "soft":
            return None
        support = _nonzero(self.code(u, args))
        outside = grad * (1 - support)
        inside = torch.addcmul(grad, args.rate, matrix.mT @ outside, value=-1)
        return outside + solve_on_support(matrix.mT, support, inside, isinstance(args.gram, Tensor)) / args.rate

    def feedforward(self, args: ReconstructionArgs) -> Tensor:
        """The initial potentials, with the code S(b; lam) = S(S(b; (1 - eta) lam); eta lam): thresholds add up.

        With "gelu" no potential has this code where |b| < (1 - eta) lam; the code starts from 0 there.
        """
        below = ((1 - args.rate) * args.sparsity).expand(args.drive.shape)
        return args.drive.sign() * (args.drive.abs() - below).clamp_min(0)


DYNAMICS: dict[str, Callable[..., ProximalFlow | LCA]] = {"proximal": ProximalFlow, "lca": LCA}
