"""VARS attention: sparse reconstruction, solved to its equilibrium or over a finite horizon, as self-attention."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

import solvers
from solvers import SteadyState
from solvers.adjoints import Adjoint
from vars_ode import dictionaries
from vars_ode.configured import configured
from vars_ode.dictionaries import Dictionary, ReadOut, Reconstruction, Shape
from vars_ode.fields import DYNAMICS, ReconstructionArgs
from vars_ode.grids import Grid
from vars_ode.layer import ReconstructionLayer, check_tokens, head_width, shared_copy, warn_of_nonfinite
from vars_ode.learned import NotLearned, learned_form
from vars_ode.masks import split_mask, whole_mask
from vars_ode.rates import RATES, StepBound


class VARSAttention(ReconstructionLayer):
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
    K           `learned`                  learned matrix: "factor", "coupling", "monotone" or "dictionary"
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
        rate: eta, a number, or the bound on 1/|G|_2 to compute: "power" iteration, or "gershgorin", the authors', under
            which five steps are far from the equilibrium, so that a network learns the steps instead of the flow.
        initial: "feedforward" starts from the code S(b; lam); "zero" from the state 0.
        learned: False; "factor" for LISTA's K G K with learned threshold and rate; "coupling" for the convex K^T G K;
            "monotone" for that and a rotation; "dictionary" for Phi K.
        ridge: mu / L of the elastic net, + 1/2 mu |a|^2 in the energy, with L the step bound: 0.05 makes the
            equilibrium unique and brings it within tens of steps.
        t1: horizon. With relaxation solvers, and with `until`, it may be inf.
        solver: name or object; a bare fixed-step name takes steps of dt = 1, which is ISTA for "euler".
        adjoint: name or object: how gradients are computed through the solve.
        until: `SteadyState(rtol, atol)` to stop each image at its equilibrium.

    Raises:
        ValueError: an argument that states no layer; the message says what was expected.
    """

    RATES = tuple(RATES)
    context_names: ClassVar[tuple[str, ...]] = ("attn_mask", "is_causal")

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
        rate: float | str = "power",
        initial: str = "feedforward",
        learned: Literal[False, "factor", "coupling", "monotone", "dictionary"] = False,
        ridge: float = 0.0,
        t1: float = 5.0,
        solver: str | solvers.Solver = "euler",
        adjoint: str | Adjoint = "direct",
        until: SteadyState | None = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        head_dim = head_width(dim, num_heads, attn_head_dim)
        if (qk_norm or scale_norm) and norm_layer is None:
            raise ValueError("qk_norm and scale_norm need norm_layer, such as norm_layer=torch.nn.LayerNorm; got None")
        if num_features is not None:
            solvers.checks.positive_int("num_features", num_features)
        solvers.checks.one_of("dynamics", dynamics, DYNAMICS)
        self.dim, self.num_heads, self.head_dim, self.attn_dim = dim, num_heads, head_dim, num_heads * head_dim
        self.scale = head_dim**-0.5
        self.field = DYNAMICS[dynamics](threshold)
        self.configure(
            solver=solver,
            t1=t1,
            sparsity=sparsity,
            rate=rate,
            initial=initial,
            adjoint=adjoint,
            until=until,
            ridge=ridge,
        )

        self.dictionary_choice = dictionaries.get(dictionary)
        self.template_shape = Shape(num_heads, head_dim, num_features, normalize_queries)
        self.dictionary = self.dictionary_choice.build(self.template_shape, **factory)
        self.learned = learned_form(learned, self.dictionary.num_templates, threshold, **factory)
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
        return configured(cls, options)

    def stated_options(self) -> dict[str, Any]:
        """What the constructor was told of the problem, as it stands; `settings` has the rest."""
        options: dict[str, Any] = {
            "dictionary": self.dictionary_choice,
            "num_features": self.template_shape.num_features,
            "normalize_queries": self.template_shape.normalize_queries,
            **self.field_options(),
        }
        if self.attn_dim != self.dim:
            options["attn_head_dim"] = self.head_dim
        if self.gate is not None:
            options["gated"] = True
        return options

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        grid: Grid | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            x: tokens, (batch, tokens, dim).
            attn_mask: boolean (True takes part) or additive, broadcastable to (batch, heads, tokens, tokens). Masks
                that are the same for every query, (..., 1, tokens), work with every dictionary and solver. Masks
                that differ between queries need dictionary="softmax" in the single-step limit.
            is_causal: query i sees keys up to i, under the same condition.
            grid: (height, width) of the last tokens, for dictionaries with learned templates. None: that of the vision
                transformer of timm's that the layer is in, or else inferred from their number.

        Returns:
            (batch, tokens, dim_out).
        """
        return self._attend(x, attn_mask=attn_mask, is_causal=is_causal, grid=grid)

    def _attend(self, x: Tensor, **context: Any) -> Tensor:
        """The output for tokens; `context` is what `_state_problem` takes beside the projections."""
        q, k, v = self._project(x)
        solution = None
        if self.code_is_drive():
            output = self._read_out_drive(q, k, v, **context)
        else:
            with torch.autocast(x.device.type, enabled=False):
                args, read_out = self._state_problem(q, k, v, **context)
                solution = self._integrate(args, x)
                output = read_out(self.field.code(solution.y1, args))
        output = output.to(v.dtype).transpose(1, 2).reshape(x.shape[0], x.shape[1], self.attn_dim)
        output = self.norm(output)
        if self.gate is not None:
            output = output * self.gate(x).sigmoid()
        output = self.proj(output)
        warn_of_nonfinite(self, x, output, solution)
        return self.proj_drop(output)

    def single_step_limit(self) -> "VARSAttention":
        """A layer that shares this one's parameters, set to the limit in which VARS is self-attention.

        lam = 0, eta = 1, state zero, one Euler step of dt = 1: the code is the drive, a = b, and the output is
        Phi Phi^T V; with dictionary="softmax" that is softmax attention.
        """
        limit = shared_copy(self)
        if self.learned.name == "factor":
            limit.learned = NotLearned()  # from state zero K has no effect, but its scalars would
        limit.field = type(self.field)("soft")
        limit.configure(
            solver=solvers.Euler(dt=1.0),
            t1=1.0,
            sparsity=0.0,
            ridge=0.0,
            rate=1.0,
            initial="zero",
            adjoint="direct",
            until=None,
        )
        return limit

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (batch, heads, tokens, head_dim); tied keys are the queries themselves."""
        check_tokens(x, self.dim, self.qkv.weight)
        parts = 2 if self.dictionary.tied else 3
        projected = self.qkv(x).reshape(x.shape[0], x.shape[1], parts, self.num_heads, self.head_dim)
        projected = projected.permute(2, 0, 3, 1, 4).contiguous()  # which each product would do by itself
        q = self.q_norm(projected[0])
        return q, q if self.dictionary.tied else self.k_norm(projected[1]), projected[parts - 1]

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.queries_keys_values(x)

    def _state_problem(self, *projected: Tensor, **context: Any) -> tuple[ReconstructionArgs, ReadOut]:
        q, k, v = projected
        problem = self._state_reconstruction(q, k, v, **context)
        return self.learned(problem, StepBound(self.rate), self.sparsity, self.ridge)

    def _state_reconstruction(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        grid: Grid | None = None,
        **place: Any,
    ) -> Reconstruction:
        """What the dictionary makes of the projections, in float32 at least."""
        dtype = torch.promote_types(v.dtype, torch.float32)
        q, k = self._placed(q, k, dtype, **place)
        tied = k is q
        q, v = q.to(dtype), v.to(dtype)
        k = q if tied else k.to(dtype)
        key_bias, pair_mask = split_mask(attn_mask, is_causal, v)
        if pair_mask is not None:
            self._check_pair_mask()
        dropout = self.attn_drop.p if self.training else 0.0
        context = {"grid": self._grid(q.shape[-2], grid)} if self.dictionary.takes_grid else {}
        return self.dictionary(q, k, v, key_bias, pair_mask, dropout, **context)

    def _read_out_drive(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        grid: Grid | None = None,
        **place: Any,
    ) -> Tensor:
        """The output where the code is the drive, without Gram and solver; (batch, heads, tokens, head_dim).

        With the softmax dictionary it is scaled dot-product attention and nothing else: in the precision of its input,
        under autocast, and with any mask.
        """
        if self.dictionary.takes_pair_mask:
            mask = whole_mask(attn_mask, is_causal, v)
            q, k = self._placed(q, k, v.dtype, **place)
            problem = self.dictionary(q, k, v, None, mask, self.attn_drop.p if self.training else 0.0)
            return problem.read_out(problem.drive)
        with torch.autocast(v.device.type, enabled=False):
            problem = self._state_reconstruction(q, k, v, attn_mask=attn_mask, is_causal=is_causal, grid=grid, **place)
            return problem.read_out(problem.drive)

    def _placed(self, q: Tensor, k: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Queries and keys with the positions of their tokens, where a subclass gives them some by `dtype`."""
        return q, k

    def code_is_drive(self) -> bool:
        """Whether the solve is one Euler step from zero to t1 that ends at a = t1 eta b = b, as in self-attention."""
        return (
            self.initial == "zero"
            and self.sparsity == 0
            and self.ridge == 0
            and isinstance(self.rate, int | float)
            and self.t1 * self.rate == 1
            and self.until is None
            and self.learned.name is False  # a parameter without effect still has a gradient: zero
            and self.field.threshold == "soft"
            and isinstance(self.adjoint, solvers.Direct)
            and self._is_single_step()
        )

    def _grid(self, tokens: int, grid: Grid | None) -> Grid | None:
        """The grid of a sequence where it is known: the one given, or else the model's."""
        if grid is not None or self.layout is None:
            return grid
        stated, prefix = getattr(self.dictionary, "num_prefix_tokens", None), self.layout.num_prefix_tokens
        if stated not in (None, prefix):
            raise ValueError(
                f"the dictionary was given num_prefix_tokens={stated}, but the model has {prefix} tokens before its "
                "grid; leave it out"
            )
        return self.token_grid(tokens)[0]

    def _check_pair_mask(self) -> None:
        if not self.dictionary.takes_pair_mask:
            raise ValueError(
                f"dictionary={self.dictionary_choice!r} cannot take a mask that differs between queries (causal, or "
                "(tokens, tokens)): its templates are shared by all queries. Mask keys instead, with a mask of shape "
                '(batch, 1, 1, tokens), or take dictionary="softmax" in the single-step limit'
            )
        if not self._is_single_step():
            raise ValueError(
                "a mask that differs between queries (causal, or (tokens, tokens)) has no symmetric Gram: tokens that "
                "must not see each other would still interact through it. It works in the single-step limit "
                '(layer.single_step_limit(), or initial="zero" with one Euler step); otherwise mask keys, with a mask '
                "of shape (batch, 1, 1, tokens)"
            )

    def _is_single_step(self) -> bool:
        solver = self.solver
        if self.initial != "zero" or not isinstance(solver, solvers.Euler):
            return False
        return solver.num_steps == 1 if solver.num_steps else solver.step_length(self.field) >= self.t1

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, head_dim={self.head_dim}, {self._settings_repr()}"
