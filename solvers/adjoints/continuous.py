"""The continuous adjoint: a second ODE, integrated backwards."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from solvers.adjoints.adjoint import Adjoint, seeks_equilibrium
from solvers.checks import non_negative_number, one_of, positive_int, rate_of_state
from solvers.field import Field
from solvers.solution import Solution, SolverError, SolverWarning
from solvers.solver import Loop, Problem
from solvers.tracing import refuse_transforms
from solvers.tree import map_tensors, replace_tensors, tensors

METHODS = ("bosh3", "dopri5", "dopri8", "adaptive_heun")


@dataclass(frozen=True)
class Continuous(Adjoint):
    """Differentiate, then discretise: memory that does not grow with the steps, and a gradient of limited accuracy.

    With a(t) = dL/dy(t) and theta standing for the tensors of `args` and the field's parameters,

        dy/dt = f,    da/dt = -(df/dy)^T a,    dL/dtheta = integral of (df/dtheta)^T a from t0 to t1

    are integrated from t1 back to t0 by torchdiffeq, restarted from the forward solve's states at each saved time
    (Chen et al. 2018, Neural ordinary differential equations, arXiv 1806.07366, appendix B). The result is the
    gradient of the exact flow, to the tolerance given here and that of the forward solve: with few fixed steps it is
    not the gradient of the numbers computed, which `Direct` and `Checkpointed` give.

    Recommended where memory is the limit and the flow is about as stable backwards as forwards. Not recommended for
    contractive flows: integrated backwards they diverge, errors with them, and the state is no longer that
    of the forward solve. docs/adjoints.md has numbers.

    The tolerance is relative to the largest gradient handed in, so that scaling a loss changes empty. All samples
    share the steps of the backward solve.

    Args:
        rtol, atol: of the backward solve. The defaults are about the best that float32 can do; in float64 1e-8 is
            affordable.
        method: "dopri5", "dopri8", "bosh3" or "adaptive_heun", torchdiffeq's names.
        max_steps: limit of trial steps between two saved times of the backward solve.
    """

    rtol: float = 1e-5
    atol: float = 1e-6
    method: str = "dopri5"
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        non_negative_number("rtol", self.rtol)
        non_negative_number("atol", self.atol)
        positive_int("max_steps", self.max_steps)
        if self.rtol == self.atol == 0:
            raise ValueError("rtol and atol are both 0: no step is short enough for that")
        one_of("method of the backward solve", self.method, METHODS)

    def solve(self, loop: Loop, y0: Tensor, args: Any) -> Solution:
        _refuse_limits(loop)
        refuse_transforms("the adjoint 'continuous'", [y0, *tensors(args)], "use adjoint='direct'")
        field = loop.problem.field
        leaves = [y0, *tensors(args), *_parameters(field)]
        if not (torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves)):
            with torch.no_grad():
                return loop.run(y0, args)
        layout = _Layout(args)
        _refuse_hidden(loop.problem, layout, leaves)
        if getattr(field, "contractive", False):
            warnings.warn(
                f"{type(field).__name__} is contractive: integrated backwards it is unstable, and the continuous "
                "adjoint's gradient is unreliable from moderate horizons on. Use adjoint='direct' or 'checkpointed', "
                "or at an equilibrium adjoint='implicit'",
                SolverWarning,
                stacklevel=3,
            )
        record = _Record(self, loop, layout)
        ys, y1 = _Adjoint.apply(record, *leaves)
        forward = record.solution
        return Solution(ts=forward.ts, ys=ys, y1=y1, status=forward.status, stats=forward.stats)


def _parameters(field: Field) -> list[nn.Parameter]:
    return list(field.parameters()) if isinstance(field, nn.Module) else []


class _Layout:
    """How the leaves, everything a gradient is taken of, stand in one list: y0, tensors of `args`, parameters.

    Each is an input of the adjoint in its own right, so what they have in common upstream is autograd's business.
    """

    def __init__(self, args: Any) -> None:
        self._skeleton = map_tensors(lambda leaf: torch.empty(0), args)
        self._end = 1 + len(tensors(args))

    def args(self, leaves: Sequence[Tensor]) -> Any:
        """`args` with its tensors taken from `leaves`."""
        return replace_tensors(self._skeleton, list(leaves[1 : self._end]))

    def cut(self, leaves: Sequence[Tensor], field: Field) -> list[Tensor]:
        """The leaves without what is upstream of them. Parameters stay, as the field looks them up itself."""
        own = [leaf.detach().requires_grad_(leaf.requires_grad) for leaf in leaves[: self._end]]
        return [*own, *_parameters(field)]


class _Record:
    """What the forward pass leaves for the backward pass beside tensors."""

    def __init__(self, adjoint: Continuous, loop: Loop, layout: _Layout) -> None:
        self.adjoint = adjoint
        self.loop = loop
        self.layout = layout
        self.solution: Solution  # without its states


class _Adjoint(torch.autograd.Function):
    """(ys, y1) of a solve as a function of the leaves."""

    @staticmethod
    def forward(ctx: Any, record: _Record, *leaves: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            solution = record.loop.run(leaves[0], record.layout.args(leaves))
        ys, y1 = solution.ys.clone(), solution.y1.clone()  # an output may not be a view of an input
        empty = y1.new_empty(0)
        record.solution = replace(solution, ys=empty, y1=empty)
        ctx.record = record
        ctx.save_for_backward(ys, y1, *leaves)
        return ys, y1

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise SolverError(
                "the adjoint 'continuous' has no second derivative, as its backward solve is not differentiated: it "
                "was asked for one by create_graph=True; use adjoint='direct'"
            )
        ys, y1, *leaves = ctx.saved_tensors
        return None, *_Backward(ctx.record, leaves).gradients(ys, y1, *grads)


class _Backward:
    """The backward solve. Its state is (y, a, one integral per leaf that needs it)."""

    def __init__(self, record: _Record, leaves: list[Tensor]) -> None:
        self.record = record
        self.problem = record.loop.problem
        self.leaves = record.layout.cut(leaves, self.problem.field)
        self.args = record.layout.args(self.leaves)
        self.wanted = [i for i, leaf in enumerate(self.leaves) if i and leaf.requires_grad]

    def gradients(self, ys: Tensor, y1: Tensor, grad_ys: Tensor, grad_y1: Tensor) -> list[Tensor | None]:
        """For every leaf, given those of the loss with respect to ys (saved, batch, ...) and y1 (batch, ...)."""
        results: list[Tensor | None] = [None] * len(self.leaves)
        if self.leaves[0].requires_grad:
            results[0] = torch.zeros_like(y1)
        integrals = [torch.zeros_like(self.leaves[i]) for i in self.wanted]
        scale = torch.maximum(grad_ys.abs().max(), grad_y1.abs().max()) if y1.numel() else 0.0
        if scale > 0:
            costate, integrals = self._integrate(ys, y1, grad_ys / scale, grad_y1 / scale, integrals)
            integrals = [scale * integral for integral in integrals]
            if self.leaves[0].requires_grad:
                results[0] = scale * costate
        for i, integral in zip(self.wanted, integrals, strict=True):
            results[i] = integral
        return results

    def _integrate(
        self, ys: Tensor, y1: Tensor, grad_ys: Tensor, grad_y1: Tensor, integrals: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        times = self._times(y1)
        moved = self._moved(y1, grad_ys, grad_y1)
        y, costate, later = y1, grad_y1, times[-1]
        for n in range(len(ys) - 1, -1, -1):
            costate, integrals = self._segment(later, times[n], moved, y, costate, integrals)
            y, costate, later = ys[n], costate + grad_ys[n], times[n]
        start = torch.full_like(later, self.problem.t0)
        return self._segment(later, start, moved, y, costate, integrals)

    def _times(self, y1: Tensor) -> list[Tensor]:
        """When the rows of ys were saved and then when y1 was reached, each shaped to broadcast against y1."""
        ts = self.record.solution.ts
        if self.problem.save_at == "steps":
            end = ts[-1]
        else:  # the solution's times are rounded to its type
            saved = self.problem.save_at or (self.problem.t1,)
            ts, end = torch.tensor(saved, dtype=torch.float64), torch.tensor(self.problem.t1, dtype=torch.float64)
        ts = torch.cat([ts, end[None]]).to(y1)
        per_sample = [1] * (y1.ndim - 1) if ts.ndim == 2 else []
        return list(ts.view(*ts.shape, *per_sample))

    def _moved(self, y1: Tensor, grad_ys: Tensor, grad_y1: Tensor) -> Tensor:
        """Which samples reached t1, shaped to broadcast against y1."""
        success = self.record.solution.success.view(-1, *[1] * (y1.ndim - 1))
        lost = ~success & ((grad_y1 != 0) | (grad_ys != 0).any(0))
        if bool(lost.any()):
            raise SolverError(
                "a gradient was asked for of samples that did not reach t1, which the continuous adjoint cannot "
                f"integrate back from.\n{self.record.solution.describe()}"
            )
        return success

    def _segment(
        self, later: Tensor, earlier: Tensor, moved: Tensor, y: Tensor, costate: Tensor, integrals: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Costate and integrals carried from `later` to `earlier`, with time t = later + s (earlier - later)."""
        from torchdiffeq import odeint  # imported late, as it takes a second

        length = (earlier - later) * moved
        if not bool(length.any()):
            return costate, integrals
        adjoint = self.record.adjoint

        def rate(s: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            y, costate = (torch.where(moved, part, 0.0) for part in state[:2])
            return self._rate(later + s * (earlier - later), length, y, costate)

        try:
            states = odeint(
                rate,
                (y, costate, *integrals),
                torch.tensor([0.0, 1.0], dtype=y.dtype, device=y.device),
                rtol=adjoint.rtol,
                atol=adjoint.atol,
                method=adjoint.method,
                options={"max_num_steps": adjoint.max_steps, "step_t": torch.ones(1, dtype=torch.float64)},
            )
        except AssertionError as error:  # torchdiffeq's way to say that it cannot go on
            raise SolverError(
                f"the backward solve of the continuous adjoint failed ({error}): this flow cannot be integrated "
                "backwards to the tolerance asked for. Use adjoint='direct' or 'checkpointed', or at an "
                "equilibrium adjoint='implicit'"
            ) from error
        _, costate, *integrals = (state[-1] for state in states)
        return costate, list(integrals)

    def _rate(self, t: Tensor, length: Tensor, y: Tensor, costate: Tensor) -> tuple[Tensor, ...]:
        """(dy/ds, da/ds, d integral/ds): one evaluation of the field and one vector-Jacobian product."""
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            value = self.problem.field(t, y, self.args)
            inputs = [y, *(self.leaves[i] for i in self.wanted)]
            products: list[Tensor | None]
            if value.requires_grad:
                products = list(torch.autograd.grad(value, inputs, -length * costate, allow_unused=True))
            else:
                products = [None] * len(inputs)
        filled = (torch.zeros_like(x) if g is None else g for x, g in zip(inputs, products, strict=True))
        return torch.where(length == 0, 0.0, value.detach() * length), *filled


def _refuse_limits(loop: Loop) -> None:
    if seeks_equilibrium(loop):
        raise ValueError(
            "the adjoint 'continuous' integrates back from a known t1, but this solve ends at an equilibrium: use "
            "adjoint='implicit' for the gradient of the equilibrium, 'direct' or 'checkpointed' for that of the steps, "
            "or a finite t1 without `until`"
        )


def _refuse_hidden(problem: Problem, layout: _Layout, leaves: list[Tensor]) -> None:
    """A field that reaches a tensor by other ways than its arguments and parameters would lose that gradient."""
    cut = layout.cut(leaves, problem.field)
    y0 = cut[0]
    with torch.enable_grad():
        value = problem.field(torch.tensor(problem.t0, dtype=y0.dtype, device=y0.device), y0, layout.args(cut))
    rate_of_state(value, y0)
    known = {id(leaf) for leaf in cut}
    todo, seen = [value.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) not in known:
            raise ValueError(
                f"the field uses a tensor of shape {tuple(variable.shape)} that requires a gradient but is neither in "
                "`args` nor one of its parameters, so the continuous adjoint would lose that gradient: pass it in "
                "`args`, make the field an nn.Module, or use adjoint='direct'"
            )
        todo.extend(parent for parent, _ in node.next_functions)
