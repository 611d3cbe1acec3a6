"""Initial value problems: given as such, or stated by a layer for an input."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

import solvers
from solvers import SteadyState
from solvers.tree import cast_floating, map_tensors
from vars_ode.fields import why_no_energy
from vars_ode.layer import ReconstructionLayer
from vars_ode.measuring import evaluation_mode
from vars_ode.models import vars_layers
from vars_ode.representation import tensor_repr

L = TypeVar("L", bound=ReconstructionLayer)


@dataclass(frozen=True)
class InitialValueProblem:
    """dy/dt = field(t, y, args) from y(0) = y0 to t1.

    A state of four or more dimensions, (batch, heads, ...), holds a problem per sample and head; others, (batch, ...),
    hold one per sample. Norms and fractions are taken per problem.

    Attributes:
        field, y0, args, t1: as for `solvers.solve`.
        solver: the default of `solve`.
        until: when to stop a sample before t1.
        read_out: from a code of any precision to the output; None if there is none.
    """

    field: solvers.Field
    y0: Tensor
    args: Any = None
    t1: float = 5.0
    solver: str | solvers.Solver = "euler"
    until: SteadyState | None = None
    read_out: Callable[[Tensor], Tensor] | None = None

    __repr__ = tensor_repr

    def to(self, dtype: torch.dtype) -> InitialValueProblem:
        """The same problem with y0 and args in another precision; the read-out is unchanged."""
        return replace(self, y0=self.y0.to(dtype), args=cast_floating(self.args, dtype))

    def code(self, state: Tensor) -> Tensor:
        """The code of a state, for fields with a method `code`; otherwise the state itself."""
        own = getattr(self.field, "code", None)
        return state if own is None else own(state, self.args)

    def output(self, code: Tensor) -> Tensor | None:
        """The read-out of a code of any precision; None without a read-out."""
        if self.read_out is None:
            return None
        with torch.no_grad():
            return self.read_out(code).double()

    def rate(self, state: Tensor) -> Tensor:
        """f(0, state), without gradient."""
        with torch.no_grad():
            return self.field(torch.zeros((), dtype=state.dtype, device=state.device), state, self.args)

    @property
    def is_convex(self) -> bool:
        """Whether the equilibria of the field are the minimisers of the convex energy E."""
        return self.why_no_energy() is None

    def why_no_energy(self) -> str | None:
        """The reason why the field descends no energy; None if it does."""
        return why_no_energy(self.field, self.args)

    def solve(
        self,
        solver: str | solvers.Solver | None = None,
        t1: float | None = None,
        save_at: Sequence[float] | Literal["steps"] | None = None,
        until: SteadyState | None = None,
    ) -> solvers.Solution:
        """A solve without gradients; failures are in the status, and there is no warning."""
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", solvers.SolverWarning)
            return solvers.solve(
                self.field,
                self.y0,
                self.t1 if t1 is None else t1,
                self.solver if solver is None else solver,
                self.args,
                save_at=save_at,
                until=until or self.until,
            )


def with_its_step(choice: str | solvers.Solver, t1: float) -> solvers.Solver:
    """The solver for another horizon than t1: with `num_steps` of t1 turned into the step length dt."""
    solver = solvers.get(choice)
    return solver.with_step_of(t1) if isinstance(solver, solvers.FixedStepSolver) else solver


def problem_of(subject: nn.Module | InitialValueProblem, x: Tensor | None = None) -> InitialValueProblem:
    """The initial value problem that `subject` states.

    Args:
        subject: a VARS layer, or a problem, which is returned unchanged.
        x: the tokens that reach the layer, (batch, tokens, dim); None with a problem.
    """
    if isinstance(subject, InitialValueProblem):
        if x is not None:
            raise ValueError(
                "got an InitialValueProblem and an input x; a problem holds its input already: leave x out"
            )
        return subject
    layer: ReconstructionLayer = check_layer(subject)
    if not isinstance(x, Tensor):
        raise ValueError(
            f"a layer states a problem for an input: give x, tokens (batch, tokens, dim); got {type(x).__name__}"
        )
    with evaluation_mode(layer), torch.no_grad():
        args, read_out = layer.problem(x)
        args = map_tensors(torch.Tensor.detach, args)
        y0 = layer.initial_state(args)

    def in_its_precision(code: Tensor) -> Tensor:
        return read_out(code.to(y0.dtype))  # that of the templates

    return InitialValueProblem(layer.field, y0, args, layer.t1, layer.solver, layer.until, in_its_precision)


def check_layer(layer: Any, kind: type[L] = ReconstructionLayer) -> L:  # type: ignore[assignment]
    """`layer` itself; a ValueError unless it is a VARS layer of the class `kind`."""
    if isinstance(layer, kind):
        return layer
    is_model = isinstance(layer, nn.Module) and bool(vars_layers(layer))
    hint = "; layer_inputs(model, images) finds the layers of a model and their inputs" if is_model else ""
    expected = "a VARS layer" if kind is ReconstructionLayer else kind.__name__
    raise ValueError(f"expected {expected}, got {type(layer).__name__}{hint}")


def per_problem(values: Tensor) -> Tensor:
    """(batch, ...) to (batch, n), or (batch, heads, ...) of four or more dimensions to (batch, heads, n)."""
    return values.flatten(2) if values.ndim >= 4 else values.flatten(1) if values.ndim > 1 else values[:, None]


def relative_errors(found: Sequence[Tensor], expected: Tensor) -> Tensor:
    """`relative_error` of each, (count, batch) or (count, batch, heads), on the CPU."""
    return torch.stack([relative_error(one, expected) for one in found]).cpu()


def relative_error(found: Tensor, expected: Tensor) -> Tensor:
    """|found - expected|_2 / |expected|_2 per problem, in float64; the absolute distance where `expected` is zero."""
    found, expected = per_problem(found.double()), per_problem(expected.double())
    size = torch.linalg.vector_norm(expected, dim=-1)
    return torch.linalg.vector_norm(found - expected, dim=-1) / torch.where(size > 0, size, 1.0)
