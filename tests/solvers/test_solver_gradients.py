"""Every gradient, under every adjoint defined, against finite differences in float64."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import solver_cases as cases
import torch
from solver_problems import finite_differences
from torch import Tensor, nn

import solvers
from solvers import SteadyState

EQUILIBRIUM = SteadyState(rtol=0, atol=1e-12)
REFERENCE = {case.equilibrium: case.name for case in cases.RELAXATIONS}  # one per equilibrium
FINE = 200  # steps of a solver of order one where it stands for the flow; one of order p takes a p-th of them


class Setting:
    """A solve to be differentiated: leaves (an ancestor shared by two of the args among them) and module parameters."""

    def __init__(self, case: cases.SolverCase, at_equilibrium: bool, of_flow: bool = False) -> None:
        self.case = case
        self.field: nn.Module = case.equilibrium()
        self.leaves = {name: leaf.requires_grad_() for name, leaf in case.equilibrium.leaves(2).items()}
        self.solver, self.options = case.solver, {}
        if at_equilibrium and case.kind != "relaxation":
            self.solver = solvers.get(case.name, dt=0.5) if case.kind == "fixed" else case.accurate
            # Under error control steps grow until they are barely stable: at equilibrium |f| stays near the tolerance.
            rule = EQUILIBRIUM if case.kind == "fixed" else SteadyState(rtol=0, atol=case.accuracy)
            self.options = {"until": rule, "t1": 200.0}
        if of_flow and case.with_steps is not None and case.order is not None:
            self.solver = case.with_steps(FINE // case.order)

    @property
    def inputs(self) -> dict[str, Tensor]:
        return {**self.leaves, **dict(self.field.named_parameters())}

    def loss(self, adjoint: str | solvers.adjoints.Adjoint = "direct", **options: Any) -> Tensor:
        args = self.case.equilibrium.args(self.leaves)
        options = {"t1": 1.5, **self.options, **options}
        solution = solvers.solve(
            self.field, self.leaves["y0"], solver=self.solver, args=args, adjoint=adjoint, **options
        )
        states = solution.ys if options.get("save_at") is not None else solution.y1
        weights = torch.linspace(-1, 2, states.numel(), dtype=states.dtype).view_as(states)
        return (weights * states).sum() + (states[..., 0] ** 2).sum()


@functools.cache
def expected(
    name: str, at_equilibrium: bool, of_flow: bool = False, save_at: tuple[float, ...] | None = None
) -> dict[str, Tensor]:
    """Finite differences, computed once per solver; an equilibrium is the same for all of them."""
    if at_equilibrium:
        name = REFERENCE[next(case.equilibrium for case in cases.SOLVERS if case.name == name)]
    setting = Setting(next(case for case in cases.SOLVERS if case.name == name), at_equilibrium, of_flow)
    options = {"save_at": torch.tensor(save_at, dtype=torch.float64)} if save_at else {}
    function: Callable[[], Tensor] = lambda: setting.loss(**options)  # noqa: E731
    return {key: finite_differences(function, leaf) for key, leaf in setting.inputs.items()}


def assert_gradients(case: cases.SolverCase, adjoint: cases.AdjointCase, save_at: tuple[float, ...] | None) -> None:
    of_flow = adjoint.of_flow and case.kind == "fixed"
    setting = Setting(case, adjoint.at_equilibrium, of_flow)
    options = {"save_at": torch.tensor(save_at, dtype=torch.float64)} if save_at else {}
    inputs = setting.inputs
    gradients = torch.autograd.grad(setting.loss(adjoint.adjoint, **options), list(inputs.values()), allow_unused=True)
    differences = expected(case.name, adjoint.at_equilibrium, of_flow, save_at)
    scale = max(float(difference.abs().max()) for difference in differences.values())
    tolerance = max(case.gradient_tolerance, adjoint.tolerance, 10 * case.accuracy if of_flow else 0.0)
    for (key, difference), gradient in zip(differences.items(), gradients, strict=True):
        assert gradient is not None, f"the gradient of {key} is missing"
        worst = float((gradient - difference).abs().max())
        assert worst <= tolerance * scale, f"{key}: off by {worst:.2e} at a scale of {scale:.2e}"


@pytest.mark.filterwarnings("ignore:.*contractive")
@cases.each_pair
def test_gradients(case: cases.SolverCase, adjoint: cases.AdjointCase) -> None:
    assert_gradients(case, adjoint, save_at=None)


@pytest.mark.filterwarnings("ignore:.*contractive")
@pytest.mark.parametrize(
    ("case", "adjoint"),
    [pair for pair in cases.pairs() if not pair[1].at_equilibrium and pair[0].kind != "relaxation"],
    ids=str,
)
def test_gradients_of_trajectories(case: cases.SolverCase, adjoint: cases.AdjointCase) -> None:
    assert_gradients(case, adjoint, save_at=(0.0, 0.37, 1.2, 1.5))


@pytest.mark.filterwarnings("ignore:.*contractive")
@cases.each_pair
def test_gradients_accumulate_on_leaves(case: cases.SolverCase, adjoint: cases.AdjointCase) -> None:
    setting = Setting(case, adjoint.at_equilibrium)
    setting.loss(adjoint.adjoint).backward()
    for key, leaf in setting.inputs.items():
        assert leaf.grad is not None, f"the gradient of {key} is missing"
        assert leaf.grad.isfinite().all()


@cases.each_pair
def test_no_graph_without_gradients(case: cases.SolverCase, adjoint: cases.AdjointCase) -> None:
    setting = Setting(case, adjoint.at_equilibrium)
    with torch.no_grad():
        assert not setting.loss(adjoint.adjoint).requires_grad
    for leaf in setting.inputs.values():
        leaf.requires_grad_(False)
    assert not setting.loss(adjoint.adjoint).requires_grad


@pytest.mark.filterwarnings("ignore:.*contractive")
@cases.each_pair
def test_a_single_input_is_enough(case: cases.SolverCase, adjoint: cases.AdjointCase) -> None:
    reference = Setting(case, adjoint.at_equilibrium)
    names = list(reference.inputs)
    together = torch.autograd.grad(reference.loss(adjoint.adjoint), list(reference.inputs.values()))
    for name, expected_gradient in zip(names, together, strict=True):
        setting = Setting(case, adjoint.at_equilibrium)
        for key, leaf in setting.inputs.items():
            leaf.requires_grad_(key == name)
        (gradient,) = torch.autograd.grad(setting.loss(adjoint.adjoint), [setting.inputs[name]])
        assert gradient.allclose(expected_gradient, rtol=1e-6, atol=1e-9), name


@pytest.mark.filterwarnings("ignore:.*contractive")
@cases.each_pair
def test_answers_do_not_depend_on_the_adjoint(case: cases.SolverCase, adjoint: cases.AdjointCase) -> None:
    setting = Setting(case, adjoint.at_equilibrium)
    with torch.no_grad():
        plain = setting.loss("direct")
    assert setting.loss(adjoint.adjoint).allclose(plain)


def undefined_pairs() -> list[tuple[cases.SolverCase, cases.AdjointCase]]:
    return [
        (case, adjoint) for case in cases.SOLVERS for adjoint in cases.ADJOINTS if adjoint.name not in case.adjoints
    ]


@pytest.mark.parametrize(("case", "adjoint"), undefined_pairs(), ids=str)
def test_undefined_pairs_say_what_works(case: cases.SolverCase, adjoint: cases.AdjointCase) -> None:
    setting = Setting(case, adjoint.at_equilibrium)
    with pytest.raises(ValueError, match=r"'(direct|checkpointed|continuous|implicit)'"):
        setting.loss(adjoint.adjoint)


def test_a_batch_dimension_may_be_shared() -> None:
    """One drive for the whole batch: its gradient is the sum over samples."""
    case = cases.SOLVERS[0]
    field, y0, args = case.problem()
    shared = args["drive"][:1].clone().requires_grad_()
    repeated = shared.detach().repeat(2, 1).requires_grad_()
    for drive in (shared, repeated):
        solvers.solve(field, y0, 1.0, "rk4", {**args, "drive": drive}).y1.sum().backward()
    assert shared.grad is not None
    assert repeated.grad is not None
    assert shared.grad[0].allclose(repeated.grad.sum(0))
