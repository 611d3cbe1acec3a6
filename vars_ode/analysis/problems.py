"""What is measured: an initial value problem, or that which a layer poses for an input."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

import solvers
from solvers import SteadyState
from solvers.tree import cast_floating, map_tensors
from vars_ode.attention import VARSAttention
from vars_ode.convolutional import VARSConvAttention
from vars_ode.fields import FactoredArgs, ReconstructionArgs

Layer = VARSAttention | VARSConvAttention


@dataclass(frozen=True)
class InitialValueProblem:
    """dy/dt = field(t, y, args) from y(0) = y0 to t1.

    A state of four or more dimensions, (batch, heads, ...), holds a problem per sample and head; others, (batch, ...),
    hold one per sample. Norms and fractions are taken per problem.

    Attributes:
        field, y0, args, t1: as for `solvers.solve`.
        solver: by which it is solved where nothing else is said.
        until: when a sample is at rest.
        read_out: from a code, of whatever precision, to the output, where there is one.
    """

    field: solvers.Field
    y0: Tensor
    args: Any = None
    t1: float = 5.0
    solver: str | solvers.Solver = "euler"
    until: SteadyState | None = None
    read_out: Callable[[Tensor], Tensor] | None = None

    def to(self, dtype: torch.dtype) -> InitialValueProblem:
        """The same problem, its numbers widened or rounded; the read-out stays as it is."""
        return replace(self, y0=self.y0.to(dtype), args=cast_floating(self.args, dtype))

    def code(self, state: Tensor) -> Tensor:
        """What a state stands for: the code, of fields that tell codes from states, and else the state."""
        own = getattr(self.field, "code", None)
        return state if own is None else own(state, self.args)

    def output(self, code: Tensor) -> Tensor | None:
        """The read-out of a code of any precision; None where there is no read-out."""
        if self.read_out is None:
            return None
        with torch.no_grad():
            return self.read_out(code).double()

    @property
    def is_convex(self) -> bool:
        """Whether the field comes to rest at the minimisers of the convex energy E."""
        return isinstance(self.args, ReconstructionArgs) and getattr(self.field, "threshold", None) == "soft"

    def why_no_energy(self) -> str | None:
        """Why there is no energy to measure; None where there is one."""
        if self.is_convex:
            return None
        if isinstance(self.args, FactoredArgs):
            return (
                'no energy: learned="factor" replaces the Gram by K G K but not the drive; learned="dictionary" has one'
            )
        if isinstance(self.args, ReconstructionArgs):
            kind = getattr(self.field, "threshold", None)
            return f'no energy: the threshold {kind!r} is not the proximal operator of |a|_1; "soft" is'
        return f"no energy: {type(self.field).__name__} is not a field of sparse reconstruction"

    def solve(
        self,
        solver: str | solvers.Solver | None = None,
        t1: float | None = None,
        save_at: Sequence[float] | Literal["steps"] | None = None,
        until: SteadyState | None = None,
    ) -> solvers.Solution:
        """A solve without gradients; failures are told by the status and not by a warning."""
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
    """The solver for other horizons than t1: one that cuts t1 into `num_steps` keeps the length of these steps."""
    solver = solvers.get(choice)
    options = {field.name for field in fields(solver)}  # type: ignore[arg-type]
    steps = getattr(solver, "num_steps", None)
    if {"num_steps", "dt"} <= options and steps and math.isfinite(t1):
        return solvers.get(solver, num_steps=None, dt=t1 / steps)
    return solver


def pose(subject: nn.Module | InitialValueProblem, x: Tensor | None = None) -> InitialValueProblem:
    """The problem that `subject` poses.

    Args:
        subject: a VARS layer, or a problem, which is returned as it is.
        x: the tokens that reach the layer, (batch, tokens, dim); None with a problem.
    """
    if isinstance(subject, InitialValueProblem):
        if x is not None:
            raise ValueError(
                "got an InitialValueProblem and an input x; a problem holds its input already: leave x out"
            )
        return subject
    check_layer(subject)
    if not isinstance(x, Tensor):
        raise ValueError(
            f"a layer poses a problem for an input only: give x, tokens (batch, tokens, dim); got {type(x).__name__}"
        )
    layer: Any = subject
    with evaluating(layer), torch.no_grad():
        posed = layer.problem(x)
        args, own = posed if isinstance(layer, VARSAttention) else (posed, None)
        args = map_tensors(torch.Tensor.detach, args)
        y0 = layer.field.feedforward(args) if layer.initial == "feedforward" else torch.zeros_like(args.drive)
    read_out = None if own is None else lambda code: own(code.to(y0.dtype))  # templates stay in the layer's precision
    return InitialValueProblem(layer.field, y0, args, layer.t1, layer.solver, layer.until, read_out)


def check_layer(layer: Any, kinds: tuple[type, ...] = (VARSAttention, VARSConvAttention)) -> None:
    """A ValueError unless `layer` is of one of `kinds`."""
    if not isinstance(layer, kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        hint = "; layer_inputs(model, images) finds the layers of a model and their inputs" if _is_model(layer) else ""
        raise ValueError(f"expected {expected}, got {type(layer).__name__}{hint}")


def _is_model(subject: Any) -> bool:
    return isinstance(subject, nn.Module) and any(isinstance(m, VARSAttention) for m in subject.modules())


def layer_inputs(model: nn.Module, x: Tensor) -> dict[str, tuple[Layer, Tensor]]:
    """The VARS layers of a model by name, in the order they are called, each with the tokens that reach it.

    Args:
        model: any module; a layer itself goes by the name "layer".
        x: what the model takes.

    Raises:
        ValueError: there is no VARS layer in it.
    """
    found: dict[str, tuple[Layer, Tensor]] = {}
    names = {module: name or "layer" for name, module in model.named_modules() if isinstance(module, Layer)}
    if not names:
        raise ValueError(
            f"there is no VARS layer in this {type(model).__name__}; build it with VARS attention, such as "
            'timm.create_model("vit_tiny_patch16_224", attn_layer="vars_d")'
        )

    def keep(layer: Any, inputs: tuple[Any, ...]) -> None:
        found.setdefault(names[layer], (layer, inputs[0].detach()))

    handles = [layer.register_forward_pre_hook(keep) for layer in names]
    try:
        with evaluating(model), torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return found


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside: dropout is noise to a measurement. Every module gets its own mode back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def per_problem(values: Tensor) -> Tensor:
    """(batch, ..., rest) to (batch, n), or (batch, heads, ...) to (batch, heads, n): see `InitialValueProblem`."""
    return values.flatten(2) if values.ndim >= 4 else values.flatten(1) if values.ndim > 1 else values[:, None]


def relative_error(found: Tensor, expected: Tensor) -> Tensor:
    """|found - expected|_2 / |expected|_2 per problem, in float64; the plain distance where `expected` is zero."""
    found, expected = per_problem(found.double()), per_problem(expected.double())
    size = torch.linalg.vector_norm(expected, dim=-1)
    return torch.linalg.vector_norm(found - expected, dim=-1) / torch.where(size > 0, size, 1.0)
