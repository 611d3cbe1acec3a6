"""The base class of layers that solve a reconstruction problem: the problem, its solve, and its settings."""

import copy
import itertools
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

import solvers
from solvers import SteadyState
from solvers.adjoints import Adjoint
from solvers.tracing import is_traced, refuse_transforms, values
from vars_ode.configured import check_options
from vars_ode.dictionaries import ReadOut
from vars_ode.fields import (
    DYNAMICS,
    LCA,
    MonotoneGram,
    ProximalFlow,
    ReconstructionArgs,
    energy,
    kkt_residual,
    why_no_energy,
)
from vars_ode.grids import Grid, TokenLayout, infer_grid

INITIAL_STATES = ("feedforward", "zero")
SETTINGS = ("solver", "t1", "sparsity", "rate", "initial", "adjoint", "until", "ridge")

SaveAt = Tensor | Literal["steps"] | None
M = TypeVar("M", bound=nn.Module)


class ReconstructionLayer(nn.Module, ABC):
    """A layer that states a reconstruction problem for its tokens, solves it for the code, and reads out the output.

    A subclass defines how tokens are projected to values (`_project`) and which problem follows (`_state_problem`), and
    sets `field`. How the problem is solved are its settings (`SETTINGS`): properties that can be assigned at any time,
    and several at once by `configure`, since some horizons and solvers are valid only together.
    """

    RATES: ClassVar[tuple[str, ...]]  # the names that `rate` may be, instead of a number
    takes_grid: ClassVar[bool] = True  # whether `forward` has an argument `grid`
    context_names: ClassVar[tuple[str, ...]] = ()  # arguments of `forward` by position, behind the tokens

    field: ProximalFlow | LCA
    watch: Callable[[solvers.Solution], object] | None = None  # called with each solution, not where it is traced
    layout: TokenLayout | None = None  # of the model that the layer belongs to, where that is known
    _solver: solvers.Solver
    _t1: float
    _sparsity: float
    _rate: float | str
    _initial: str
    _adjoint: Adjoint
    _until: SteadyState | None
    _ridge: float

    # --- the problem and its solve ---

    @abstractmethod
    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Projections of the tokens; the last are the values, (batch, heads, tokens, width)."""

    @abstractmethod
    def _state_problem(self, *projected: Tensor, **context: Any) -> tuple[ReconstructionArgs, ReadOut]:
        """The problem for projected tokens, in float32 at least, and its read-out from code to values."""

    def problem(self, x: Tensor, **context: Any) -> tuple[ReconstructionArgs, ReadOut]:
        """The reconstruction problem for tokens, and its read-out from code to values.

        Args:
            x: tokens, (batch, tokens, dim).
            context: further arguments of `forward`.
        """
        projected = self._project(x)
        with torch.autocast(x.device.type, enabled=False):
            return self._state_problem(*projected, **context)

    def solve(self, x: Tensor, save_at: SaveAt = None, **context: Any) -> solvers.Solution:
        """The solution of the problem for tokens. Its states are codes, or membrane potentials with dynamics="lca".

        Args:
            x: tokens, (batch, tokens, dim).
            save_at: as for `solvers.solve`.
            context: further arguments of `forward`.
        """
        args, _ = self.problem(x, **context)
        return self._integrate(args, x, save_at)

    def energy(self, x: Tensor, save_at: SaveAt = "steps", **context: Any) -> Tensor:
        """E along the solve, without the constant 1/2 |V|^2: (saved, batch, heads); in VARS-S the heads are channels.

        Raises:
            ValueError: the layer's field descends no energy.
        """
        return self._along_solve(energy, torch.sum, x, save_at, context)

    def kkt_residual(self, x: Tensor, save_at: SaveAt = "steps", **context: Any) -> Tensor:
        """The violation of the optimality conditions along the solve, in units of the drive, shaped as the energy.

        Raises:
            ValueError: the layer's field descends no energy.
        """
        return self._along_solve(kkt_residual, torch.amax, x, save_at, context)

    def attention_map(self, x: Tensor, **context: Any) -> Tensor:
        """The derivative of output tokens by value tokens at the solution, (batch, heads, tokens, tokens), in float32
        at least.

        Templates are held fixed, and the derivative is averaged over the channels of a head, as the threshold acts on
        each of them by itself. In VARS-S each channel is a head. In the single-step limit of the softmax dictionary it
        is the attention matrix. It takes one backward pass per token through the steps of the solve.
        """
        refuse_transforms("attention_map", [x], "call it outside; it takes batches")
        if not isinstance(x, Tensor):
            raise ValueError(f"expected tokens as a tensor (batch, tokens, dim), got {type(x).__name__}")
        with torch.inference_mode(False), torch.enable_grad():
            *others, projected = (part.detach() for part in self._project(x.clone()))
            dtype = torch.promote_types(projected.dtype, torch.float32)  # float16 overflows
            v = projected.to(dtype, copy=True).requires_grad_()
            with torch.autocast(x.device.type, enabled=False):
                args, read_out = self._state_problem(*others, v, **context)
                state = self._integrate(args, x, adjoint=solvers.Direct()).y1
                output = read_out(self.field.code(state, args))
            rows = []
            for token in range(output.shape[-2]):
                (row,) = torch.autograd.grad(output[..., token, :].sum(), v, retain_graph=True)
                rows.append(row.mean(-1))
        attended = torch.stack(rows, -2)
        _warn_of_overflow(attended, state)
        return attended

    def token_grid(self, tokens: int) -> tuple[Grid, int]:
        """(grid, number of tokens before it) of a sequence: as the model has it, or else the largest square."""
        if self.layout is None:
            return infer_grid(tokens)
        self.layout.check(tokens)
        return self.layout.grid, self.layout.num_prefix_tokens

    def initial_state(self, args: ReconstructionArgs) -> Tensor:
        """The initial state of a problem, according to `initial`."""
        return self.field.feedforward(args) if self.initial == "feedforward" else torch.zeros_like(args.drive)

    def _along_solve(
        self,
        measure: Callable[[Tensor, ReconstructionArgs], Tensor],
        joined: Callable[..., Tensor],
        x: Tensor,
        save_at: SaveAt,
        context: dict[str, Any],
    ) -> Tensor:
        """A measure of the codes along the solve; those of the filters of one channel of VARS-S are `joined`."""
        args, _ = self.problem(x, **context)
        reason = why_no_energy(self.field, args)
        if reason and not (measure is kkt_residual and isinstance(args.gram, MonotoneGram)):
            raise ValueError(f"this layer's field descends no energy: {reason}")
        states = self._integrate(args, x, save_at).ys
        with torch.autocast(x.device.type, enabled=False):
            measured = torch.stack([measure(self.field.code(state, args), args) for state in states])
        measured = measured if measured.ndim == 3 else joined(measured.flatten(3), dim=-1)
        _warn_of_overflow(measured, states)
        return measured

    def _integrate(
        self,
        args: ReconstructionArgs,
        x: Tensor,
        save_at: SaveAt = None,
        adjoint: Adjoint | None = None,
    ) -> solvers.Solution:
        solution = solvers.solve(
            self.field,
            self.initial_state(args),
            t1=self.t1,
            solver=self.solver,
            args=args,
            adjoint=adjoint or self.adjoint,
            save_at=save_at,
            until=self.until,
        )
        if is_traced(x):
            return solution
        if bool((values(solution.status) == solvers.Status.NONFINITE).any()):
            _blame_input(x)
        if self.watch is not None:
            self.watch(solution)
        return solution

    # --- settings ---

    def settings(self) -> dict[str, Any]:
        """The current settings, by name."""
        return {name: getattr(self, name) for name in SETTINGS}

    def field_options(self) -> dict[str, str]:
        """The constructor's arguments that chose the field."""
        dynamics = next(name for name, cls in DYNAMICS.items() if type(self.field) is cls)
        return {"threshold": self.field.threshold, "dynamics": dynamics}

    @abstractmethod
    def stated_options(self) -> dict[str, Any]:
        """What the constructor was told of the problem, as it stands; `settings` has the rest."""

    def configure(self, **changes: Any) -> None:
        """Assign several settings at once; if one of them or their combination is invalid, none is changed.

        Args:
            changes: names out of `SETTINGS`, with values as for the constructor.
        """
        self._assign(self.resolve(**changes))

    def resolve(self, **changes: Any) -> dict[str, Any]:
        """All settings after `changes`, with names resolved to objects; a ValueError if they are invalid."""
        check_options(f"a {type(self).__name__}'s settings", changes, SETTINGS)
        merged = {**{name: getattr(self, f"_{name}", None) for name in SETTINGS}, **changes}
        merged["solver"] = solvers.get(merged["solver"])
        merged["adjoint"] = solvers.adjoints.get(merged["adjoint"])
        solvers.checks.non_negative_number("sparsity", merged["sparsity"])
        solvers.checks.non_negative_number("ridge", merged["ridge"])
        solvers.checks.one_of("initial state", merged["initial"], INITIAL_STATES)
        self._check_rate(merged["rate"])
        _check_horizon(merged["t1"], merged["solver"], merged["until"])
        return merged

    def _assign(self, settings: dict[str, Any]) -> None:
        for name, value in settings.items():
            setattr(self, f"_{name}", value)

    def _check_rate(self, rate: float | str) -> None:
        if not isinstance(rate, str):
            solvers.checks.positive_number("rate", rate)
        else:
            try:
                solvers.checks.one_of("rate", rate, self.RATES)
            except ValueError as error:
                raise ValueError(f"{error}, or give a number") from None

    @property
    def solver(self) -> solvers.Solver:
        """The solver; assignable by name or as an object."""
        return self._solver

    @solver.setter
    def solver(self, choice: str | solvers.Solver) -> None:
        self.configure(solver=choice)

    @property
    def adjoint(self) -> Adjoint:
        """How gradients are computed through the solve; assignable by name or as an object."""
        return self._adjoint

    @adjoint.setter
    def adjoint(self, choice: str | Adjoint) -> None:
        self.configure(adjoint=choice)

    @property
    def t1(self) -> float:
        """The horizon of the solve; assignable."""
        return self._t1

    @t1.setter
    def t1(self, horizon: float) -> None:
        self.configure(t1=horizon)

    @property
    def until(self) -> SteadyState | None:
        """When to stop an image before t1; assignable."""
        return self._until

    @until.setter
    def until(self, rule: SteadyState | None) -> None:
        self.configure(until=rule)

    @property
    def sparsity(self) -> float:
        """lam >= 0; assignable."""
        return self._sparsity

    @sparsity.setter
    def sparsity(self, value: float) -> None:
        self.configure(sparsity=value)

    @property
    def ridge(self) -> float:
        """mu / L >= 0 of the elastic net; assignable."""
        return self._ridge

    @ridge.setter
    def ridge(self, value: float) -> None:
        self.configure(ridge=value)

    @property
    def rate(self) -> float | str:
        """eta, a number or the name of a step bound; assignable."""
        return self._rate

    @rate.setter
    def rate(self, value: float | str) -> None:
        self.configure(rate=value)

    @property
    def initial(self) -> str:
        """Where the solve starts, "feedforward" or "zero"; assignable."""
        return self._initial

    @initial.setter
    def initial(self, choice: str) -> None:
        self.configure(initial=choice)

    def _settings_repr(self) -> str:
        """For `extra_repr`: how the problem is solved."""
        settings = {name: value for name, value in self.settings().items() if value is not None}
        return f"field={self.field}, " + ", ".join(f"{name}={value!r}" for name, value in settings.items())


def shared_copy(module: M) -> M:
    """A copy of a module that shares its parameters and buffers: training one trains both."""
    shared = itertools.chain(module.parameters(), module.buffers())
    return copy.deepcopy(module, {id(tensor): tensor for tensor in shared})


def check_tokens(x: Tensor, dim: int, weight: Tensor | None = None) -> None:
    """A ValueError unless `x` is floating point tokens (batch, tokens, dim), at least one of them, in the type of the
    projection's `weight`; autocast brings them together, but for float64, which it leaves alone."""
    if not isinstance(x, Tensor):
        raise ValueError(f"expected tokens as a tensor (batch, tokens, {dim}), got {type(x).__name__}")
    if x.ndim != 3 or x.shape[-1] != dim or x.shape[1] == 0 or not x.is_floating_point():
        raise ValueError(
            f"expected floating point tokens (batch, tokens, {dim}), at least one token, got {x.dtype} of shape "
            f"{tuple(x.shape)}"
        )
    if not isinstance(weight, Tensor) or x.dtype == weight.dtype or not weight.is_floating_point():
        return
    if not torch.is_autocast_enabled(x.device.type) or torch.float64 in (x.dtype, weight.dtype):
        raise ValueError(
            f"tokens are {x.dtype} and the weights of the layer {weight.dtype}: cast one of them, such as "
            f"x.to({weight.dtype}), or call the layer under torch.autocast"
        )


def head_width(dim: int, num_heads: int, attn_head_dim: int | None = None) -> int:
    """dim / num_heads, or `attn_head_dim`; a ValueError if that is no whole number."""
    solvers.checks.positive_int("dim", dim)
    solvers.checks.positive_int("num_heads", num_heads)
    if attn_head_dim is not None:
        solvers.checks.positive_int("attn_head_dim", attn_head_dim)
        return attn_head_dim
    if dim % num_heads:
        raise ValueError(
            f"dim={dim} is not a multiple of num_heads={num_heads}; change one of them, or give attn_head_dim"
        )
    return dim // num_heads


def refuse_unsupported(owner: str, **stated: Any) -> None:
    """A ValueError for arguments that timm's models may pass to an attention and `owner` does not support."""
    asked = [f"{name}={value!r}" for name, value in stated.items() if value]
    if asked:
        raise ValueError(f"{owner} has no use for {', '.join(asked)}; leave it out, or take another attention")


def _check_horizon(t1: Any, solver: solvers.Solver, until: SteadyState | None) -> None:
    if isinstance(t1, bool) or not isinstance(t1, int | float) or not t1 > 0:
        raise ValueError(
            f"t1, the horizon of the solve, must be a number above 0, got {t1!r}; for no recurrence at all take "
            "single_step_limit()"
        )
    if until is not None and not isinstance(until, SteadyState):
        raise ValueError(f"until must be a solvers.SteadyState(rtol, atol) or None, got {until!r}")
    if math.isinf(t1) and until is None and not solver.reaches_equilibrium:
        raise ValueError(
            f"t1=inf asks for the equilibrium, which {solver} does not stop at; use a relaxation solver such as "
            "'nesterov', or until=solvers.SteadyState(...)"
        )


def warn_of_nonfinite(layer: nn.Module, x: Tensor, output: Tensor, solution: solvers.Solution | None = None) -> None:
    """A warning if a layer's output is not finite; a ValueError if that is because its input is not.

    A narrow floating point type overflows behind a solve that went well; a `solution` that did not has warned already.
    """
    shown = values(output.detach())
    if is_traced(shown) or bool(shown.sum().isfinite()) or bool(shown.isfinite().all()):
        return
    _blame_input(x)
    if solution is not None and bool((values(solution.status) == solvers.Status.NONFINITE).any()):
        return
    bad = int((~shown.isfinite()).flatten(1).any(1).sum())
    warnings.warn(
        f"{type(layer).__name__}: the outputs of {bad} of {len(shown)} inputs hold NaN or infinite values, though the "
        f"inputs do not: they outgrew {output.dtype}, or a parameter is not finite. Scale the input, by a "
        "normalisation layer before this one, or use a wider type",
        solvers.SolverWarning,
        stacklevel=3,
    )


def _warn_of_overflow(measured: Tensor, states: Tensor) -> None:
    """A warning if a measure of states is not finite though they are; others were warned of by the solve."""
    if is_traced(measured) or bool(values(measured).isfinite().all()) or not bool(values(states).isfinite().all()):
        return
    warnings.warn(
        f"an energy, residual or attention map of the solve outgrew {measured.dtype}, though its states are finite: "
        "scale the input, or measure the layer in float64",
        solvers.SolverWarning,
        stacklevel=4,
    )


def _blame_input(x: Tensor) -> None:
    """A ValueError if the input itself is not finite; a solve that diverges has its own status and warning."""
    x = values(x)
    if not bool(x.isfinite().all()):
        bad = int((~x.isfinite()).flatten(1).any(1).sum())
        raise ValueError(
            f"{bad} of {len(x)} inputs hold NaN or infinite values; check the data and the layers before this one"
        )
