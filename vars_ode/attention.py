"""VARS attention: the equilibrium, or a finite solve, of sparse reconstruction in place of softmax(QK^T) V."""

import copy
import copyreg
import inspect
import itertools
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

import solvers
from solvers import SteadyState
from solvers.adjoints import Adjoint
from vars_ode import dictionaries
from vars_ode.dictionaries import Dictionary, ReadOut, Shape
from vars_ode.fields import DYNAMICS, AnyArgs, ReconstructionArgs, check_threshold, energy, kkt_residual
from vars_ode.layer import Recurrence
from vars_ode.learned import LearnedDictionary, LearnedFactor, NotLearned
from vars_ode.masks import split_mask
from vars_ode.rates import RATES


class VARSAttention(Recurrence, nn.Module):
    """Self-attention as an ODE, a drop-in for `timm.layers.Attention`.

    Tokens are projected to queries, keys and values. A dictionary makes templates Phi out of queries and keys; a field
    finds the sparse code a that reconstructs the values, E(a) = 1/2 |V - Phi a|^2 + lam |a|_1, and a solver integrates
    it from its initial state to t1. Phi a is projected to the output.

    ==========  =========================  ===========================================================
    paper       argument                   meaning
    ==========  =========================  ===========================================================
    Phi         `dictionary`               templates; "dynamic" VARS-D, "static+dynamic" VARS-SD
    m           `num_features`             random features per head (and learned ones, in VARS-SD)
    lambda      `sparsity`                 weight of the l1 norm
    S           `threshold`                "soft", or the later code's "gelu"
    1 / L, eta  `rate`                     step bound; a number, "gershgorin" or "power"
    K           `learned`                  learned coupling, "factor" or "dictionary"
    ==========  =========================  ===========================================================

    The first group of arguments is timm's own. The second states the problem, the third how it is solved: another
    solver changes accuracy and cost, never the problem, and never the state dict.

    Args:
        dim: width of the tokens.
        num_heads: heads; `dim` must be a multiple unless `attn_head_dim` is given.
        attn_head_dim: width of a head, dim / num_heads by default.
        dim_out: width of the output, `dim` by default.
        qkv_bias, proj_bias: whether the projections have a bias.
        qk_norm, scale_norm: normalise queries and keys per head, and the output before its projection, by `norm_layer`.
        gated: multiply the output elementwise by a sigmoid of a projection of the input.
        attn_drop: dropout on the read-out: attention weights for "softmax", template entries otherwise.
        proj_drop: dropout on the output.
        norm_layer: constructor of the normalisation layers.
        dictionary: "dynamic", "static+dynamic", "softmax", or an object such as `StaticDynamic(grid=(7, 7))`.
        num_features: m, per head; twice the width of a head by default.
        normalize_queries: l2-normalise queries before the random features (the authors' latest code).
        sparsity: lam >= 0; the authors' 0.3.
        threshold: "soft" or "gelu".
        dynamics: "proximal" (state: the code) or "lca" (state: the membrane potential).
        rate: eta, a number, or the bound on 1/|G|_2 to compute: "gershgorin" (the authors') or the tighter "power".
        initial: "feedforward" starts from S(b; lam), the single step; "zero" from rest.
        learned: False; "factor" for LISTA's K G K with learned threshold and rate; "dictionary" for Phi K.
        t1: horizon. With relaxation solvers, and with `until`, it may be inf.
        solver: name or object; a bare fixed-step name takes steps of dt = 1, which is ISTA for "euler".
        adjoint: name or object: how gradients get back through the solve.
        until: `SteadyState(rtol, atol)` to stop each image when it has come to rest.

    Raises:
        ValueError: an argument that states no layer; the message says what was expected.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        attn_head_dim: int | None = None,
        dim_out: int | None = None,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        scale_norm: bool = False,
        proj_bias: bool = True,
        gated: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm_layer: type[nn.Module] | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        *,
        dictionary: str | Dictionary = "dynamic",
        num_features: int | None = None,
        normalize_queries: bool = True,
        sparsity: float = 0.3,
        threshold: str = "soft",
        dynamics: str = "proximal",
        rate: float | str = "gershgorin",
        initial: str = "feedforward",
        learned: Literal[False, "factor", "dictionary"] = False,
        t1: float = 5.0,
        solver: str | solvers.Solver = "euler",
        adjoint: str | Adjoint = "direct",
        until: SteadyState | None = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        head_dim = _head_dim(dim, num_heads, attn_head_dim)
        if (qk_norm or scale_norm) and norm_layer is None:
            raise ValueError("qk_norm and scale_norm need norm_layer, such as norm_layer=torch.nn.LayerNorm; got None")
        _check_problem(num_features, sparsity, threshold, dynamics, rate)
        self.num_heads, self.head_dim, self.attn_dim = num_heads, head_dim, num_heads * head_dim
        self.scale = head_dim**-0.5
        self.sparsity, self.rate, self.initial = sparsity, rate, initial
        self.field = DYNAMICS[dynamics](threshold)
        self._set_solution(t1, solver, adjoint, until)

        shape = Shape(num_heads, head_dim, num_features, normalize_queries)
        self.dictionary = dictionaries.get(dictionary).build(shape, **factory)
        self.learned = _learned(learned, self.dictionary.num_templates, threshold, **factory)
        self.qkv = nn.Linear(dim, self.attn_dim * (2 if self.dictionary.tied else 3), bias=qkv_bias, **factory)
        self.q_norm = norm_layer(head_dim, **factory) if qk_norm and norm_layer else nn.Identity()
        separate_keys = qk_norm and not self.dictionary.tied
        self.k_norm = norm_layer(head_dim, **factory) if separate_keys and norm_layer else nn.Identity()
        self.attn_drop = nn.Dropout(attn_drop)
        self.norm = norm_layer(self.attn_dim, **factory) if scale_norm and norm_layer else nn.Identity()
        self.gate = nn.Linear(dim, self.attn_dim, bias=qkv_bias, **factory) if gated else None
        self.proj = nn.Linear(self.attn_dim, dim_out or dim, bias=proj_bias, **factory)
        self.proj_drop = nn.Dropout(proj_drop)

    @classmethod
    def configured(cls, **options: Any) -> "type[VARSAttention]":
        """A subclass with other defaults, for timm's `attn_layer=`, which takes classes only.

        Args:
            options: keyword arguments of the constructor.
        """
        valid = [name for name in inspect.signature(VARSAttention.__init__).parameters if name not in ("self", "dim")]
        unknown = sorted(set(options) - set(valid))
        if unknown:
            raise ValueError(
                f"VARSAttention has no option {', '.join(map(repr, unknown))}; valid options: {', '.join(valid)}"
            )
        base = cls
        if issubclass(cls, _Configured):  # already: what is new goes on top
            options = {**cls.options, **options}
            base = cls.base if "options" in vars(cls) else cls
        bases = (base,) if issubclass(base, _Configured) else (_Configured, base)
        made: Any = _ConfiguredType(base.__name__, bases, {"options": options, "base": base, "__module__": __name__})
        return made

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Attend.

        Args:
            x: tokens, (batch, tokens, dim).
            attn_mask: boolean (True takes part) or additive, broadcastable to (batch, heads, tokens, tokens). Masks
                that are the same for every query, (..., 1, tokens), work with every dictionary and solver. Masks
                that differ between queries need dictionary="softmax" in the single-step limit.
            is_causal: query i sees keys up to i, under the same condition.

        Returns:
            (batch, tokens, dim_out).
        """
        q, k, v = self._project(x)
        with torch.autocast(x.device.type, enabled=False):
            args, read_out = self._state_problem(q, k, v, attn_mask, is_causal)
            output = read_out(self.field.code(self._integrate(args, x).y1, args))
        output = output.to(v.dtype).transpose(1, 2).reshape(*x.shape[:2], self.attn_dim)
        output = self.norm(output)
        if self.gate is not None:
            output = output * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(output))

    def solve(
        self,
        x: Tensor,
        save_at: Tensor | Literal["steps"] | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> solvers.Solution:
        """The solve itself: states are (batch, heads, m, d), codes or membrane potentials as the dynamics have it."""
        args, _ = self.problem(x, attn_mask, is_causal)
        return self._integrate(args, x, save_at)

    def problem(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> tuple[AnyArgs, ReadOut]:
        """The reconstruction problem that tokens (batch, tokens, dim) pose, and its read-out from code to values."""
        q, k, v = self._project(x)
        with torch.autocast(x.device.type, enabled=False):
            return self._state_problem(q, k, v, attn_mask, is_causal)

    def energy(self, x: Tensor, save_at: Tensor | Literal["steps"] = "steps") -> Tensor:
        """E along the solve, without the constant 1/2 |V|^2: (saved, batch, heads)."""
        return self._along_solve(energy, x, save_at)

    def kkt_residual(self, x: Tensor, save_at: Tensor | Literal["steps"] = "steps") -> Tensor:
        """Distance from the optimality conditions along the solve, in units of the drive: (saved, batch, heads)."""
        return self._along_solve(kkt_residual, x, save_at)

    def _along_solve(self, measure: Any, x: Tensor, save_at: Tensor | Literal["steps"]) -> Tensor:
        args, _ = self.problem(x)
        if not isinstance(args, ReconstructionArgs) or self.field.threshold != "soft":
            raise ValueError(
                "this layer's field descends no energy: " + self._why_no_energy() + ', while learned="dictionary" with '
                'threshold="soft" does'
            )
        states = self._integrate(args, x, save_at).ys
        with torch.autocast(x.device.type, enabled=False):
            return torch.stack([measure(self.field.code(state, args), args) for state in states])

    def _why_no_energy(self) -> str:
        if self.field.threshold != "soft":
            return f'threshold="{self.field.threshold}" is not the proximal operator of |a|_1'
        return 'learned="factor" replaces the Gram by K G K but not the drive'

    def attention_map(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """The linearised map from values to output at the solution, (batch, heads, tokens, tokens).

        Row i says how output token i moves with each value token, templates held fixed, averaged over channels
        (which the dictionary treats alike but thresholds differently). In the single-step limit of the softmax
        dictionary it is the attention matrix. Takes one backward pass per token through the steps of the solve.
        """
        with torch.inference_mode(False), torch.enable_grad():
            q, k, v = (part.detach() for part in self._project(x.clone()))
            v.requires_grad_()
            with torch.autocast(x.device.type, enabled=False):
                args, read_out = self._state_problem(q, k, v, attn_mask, is_causal)
                states = self._integrate(args, x, adjoint=solvers.Direct()).y1
                output = read_out(self.field.code(states, args))
            rows = []
            for token in range(output.shape[-2]):
                (row,) = torch.autograd.grad(output[..., token, :].sum(), v, retain_graph=True)
                rows.append(row.mean(-1))
        return torch.stack(rows, -2)

    def single_step_limit(self) -> "VARSAttention":
        """A layer that shares this one's parameters, set to the limit in which VARS is self-attention.

        lam = 0, eta = 1, state zero, one Euler step of dt = 1: the code is the drive, a = b, and the output is
        Phi Phi^T V; with dictionary="softmax" that is softmax attention.
        """
        shared = itertools.chain(self.parameters(), self.buffers())
        limit = copy.deepcopy(self, {id(tensor): tensor for tensor in shared})
        if isinstance(self.learned, LearnedFactor):
            limit.learned = NotLearned()  # from state zero K plays no part; its scalars would
        limit.sparsity, limit.rate, limit.initial = 0.0, 1.0, "zero"
        limit.field = type(self.field)("soft")
        limit._set_solution(1.0, solvers.Euler(dt=1.0), "direct", None)
        return limit

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (batch, heads, tokens, head_dim)."""
        if x.ndim != 3 or x.shape[-1] != self.qkv.in_features or x.shape[1] == 0 or not x.is_floating_point():
            raise ValueError(
                f"expected floating point tokens (batch, tokens, {self.qkv.in_features}), at least one token, got "
                f"{x.dtype} of shape {tuple(x.shape)}"
            )
        heads = (2 if self.dictionary.tied else 3, self.num_heads, self.head_dim)
        q, *k, v = self.qkv(x).unflatten(-1, heads).permute(2, 0, 3, 1, 4).unbind(0)
        q = self.q_norm(q)
        return q, self.k_norm(k[0]) if k else q, v

    def _state_problem(
        self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool
    ) -> tuple[AnyArgs, ReadOut]:
        dtype = torch.promote_types(v.dtype, torch.float32)
        tied = k is q
        q, v = q.to(dtype), v.to(dtype)
        k = q if tied else k.to(dtype)
        key_bias, pair_mask = split_mask(attn_mask, is_causal, v)
        if pair_mask is not None and not self.dictionary.tied and not self._is_single_step():
            raise ValueError(
                "a mask that differs between queries (causal, or (tokens, tokens)) leaves no symmetric Gram: tokens "
                "that must not see each other would still explain each other away. It works in the single-step limit "
                '(layer.single_step_limit(), or initial="zero" with one Euler step); otherwise mask keys, with a mask '
                "of shape (batch, 1, 1, tokens)"
            )
        dropout = self.attn_drop.p if self.training else 0.0
        problem = self.dictionary(q, k, v, key_bias, pair_mask, dropout)
        return self.learned(problem, self._step_bound, self.sparsity)

    def _step_bound(self, gram: Tensor) -> Tensor:
        _check_rate(self.rate)  # it is assignable
        if isinstance(self.rate, str):
            return RATES[self.rate](gram)
        return gram.new_full((), self.rate)

    def _is_single_step(self) -> bool:
        solver = self.solver
        if self.initial != "zero" or not isinstance(solver, solvers.Euler):
            return False
        return solver.num_steps == 1 if solver.num_steps else (solver.dt or 1.0) >= self.t1

    def extra_repr(self) -> str:
        rate = repr(self.rate)
        return (
            f"num_heads={self.num_heads}, head_dim={self.head_dim}, field={self.field}, sparsity={self.sparsity}, "
            f"rate={rate}, initial={self.initial!r}, t1={self.t1}, solver={self.solver}, adjoint={self.adjoint}"
        )


class _ConfiguredType(type):
    """The type of the classes that `configured` makes. They have no importable name, so they are pickled by options."""


class _Configured(metaclass=_ConfiguredType):
    """Mixed in by `configured`: fills in its options."""

    base: ClassVar[type[VARSAttention]]
    options: ClassVar[dict[str, Any]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**type(self).options, **kwargs})


def _reduce_configured(cls: Any) -> str | tuple[Any, ...]:
    if "options" in vars(cls):
        return _configure, (cls.base, cls.options)
    return cls.__qualname__  # a user's own subclass, found by name


def _configure(base: type[VARSAttention], options: dict[str, Any]) -> type[VARSAttention]:
    return base.configured(**options)


copyreg.pickle(_ConfiguredType, _reduce_configured)


def _head_dim(dim: int, num_heads: int, attn_head_dim: int | None) -> int:
    for name, value in (("dim", dim), ("num_heads", num_heads)):
        solvers.checks.positive_int(name, value)
    if attn_head_dim is not None:
        solvers.checks.positive_int("attn_head_dim", attn_head_dim)
        return attn_head_dim
    if dim % num_heads:
        raise ValueError(
            f"dim={dim} is not a multiple of num_heads={num_heads}; change one of them, or give attn_head_dim"
        )
    return dim // num_heads


def _check_problem(num_features: int | None, sparsity: float, threshold: str, dynamics: str, rate: float | str) -> None:
    if num_features is not None:
        solvers.checks.positive_int("num_features", num_features)
    solvers.checks.non_negative_number("sparsity", sparsity)
    check_threshold(threshold)
    if dynamics not in DYNAMICS:
        raise ValueError(f"unknown dynamics {dynamics!r}; choose one of {', '.join(DYNAMICS)}")
    _check_rate(rate)


def _check_rate(rate: float | str) -> None:
    if not isinstance(rate, str):
        solvers.checks.positive_number("rate", rate)
    elif rate not in RATES:
        raise ValueError(f"unknown rate {rate!r}; choose one of {', '.join(RATES)}, or give a number")


def _learned(
    learned: Literal[False, "factor", "dictionary"], num_templates: int | None, threshold: str, **factory: Any
) -> NotLearned | LearnedFactor | LearnedDictionary:
    if learned is False:
        return NotLearned()
    if learned not in ("factor", "dictionary"):
        raise ValueError(f"learned must be False, 'factor' or 'dictionary', got {learned!r}")
    if num_templates is None:
        raise ValueError(
            f"learned={learned!r} needs a fixed number of templates, but this dictionary has one per token; take "
            '"dynamic" or "static+dynamic", or learned=False'
        )
    if learned == "dictionary":
        return LearnedDictionary(num_templates, **factory)
    return LearnedFactor(num_templates, signed_sparsity=threshold == "gelu", **factory)
