"""The learned forms with an equilibrium, the elastic net, and their gradients: a form enters by one row."""

import warnings
from dataclasses import dataclass

import pytest
import torch
from core_cases import DICTIONARIES, GRID, tokens
from sklearn.linear_model import ElasticNet
from torch import Tensor

import solvers
from vars_ode import VARSAttention, VARSConvAttention
from vars_ode.fields import LCA, MonotoneGram, ProximalFlow, energy, kkt_residual
from vars_ode.learned import LEARNED_FORMS

RELAXATION = {
    "fixed_point": solvers.FixedPoint(max_steps=20_000, rtol=1e-11, atol=1e-12),
    "nesterov": solvers.Nesterov(max_steps=20_000, rtol=1e-11, atol=1e-12),
    "anderson": solvers.Anderson(max_steps=20_000, rtol=1e-11, atol=1e-12),
    "douglas_rachford": solvers.DouglasRachford(max_steps=20_000, rtol=1e-11, atol=1e-12),
}


@dataclass(frozen=True)
class Form:
    """What is true of a learned form.

    Attributes:
        learned: its name, or False.
        has_energy: the field is the gradient of a convex energy.
        solvers: those that reach its equilibrium.
    """

    learned: str | bool
    has_energy: bool = True
    solvers: tuple[str, ...] = tuple(RELAXATION)

    def layer(self, dictionary: int = 0, **options: object) -> VARSAttention:
        """A layer in float64 whose learned matrices are away from where they start."""
        settings = {"learned": self.learned, "ridge": 0.05, "dtype": torch.float64, "sparsity": 0.1}
        layer = DICTIONARIES[dictionary].layer(**{**settings, **options})
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in layer.learned.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.05 * noise)
        return layer

    def __str__(self) -> str:
        return str(self.learned)


FORMS = [
    Form(False),
    Form("coupling"),
    Form("dictionary"),
    Form("monotone", has_energy=False, solvers=("fixed_point", "anderson", "douglas_rachford")),
]
each_form = pytest.mark.parametrize("form", FORMS, ids=str)


def inputs() -> Tensor:
    return tokens(dtype=torch.float64)


def test_every_form_with_an_equilibrium_has_a_row() -> None:
    assert {form.learned for form in FORMS} == {False, *LEARNED_FORMS} - {"factor"}


@each_form
@pytest.mark.parametrize("dictionary", [0, 2])
@pytest.mark.parametrize("dynamics", ["proximal", "lca"])
def test_all_its_solvers_reach_one_equilibrium(form: Form, dictionary: int, dynamics: str) -> None:
    layer = form.layer(dictionary, dynamics=dynamics)
    args, _ = layer.problem(inputs())
    codes = []
    for name in form.solvers:
        layer.solver = RELAXATION[name]
        solution = layer.solve(inputs())
        assert bool((solution.status == solvers.Status.STEADY_STATE).all()), name
        codes.append(layer.field.code(solution.y1, args))
    for code in codes[1:]:
        torch.testing.assert_close(code, codes[0], rtol=0, atol=1e-7)
    assert kkt_residual(codes[0], args).max() < 1e-8


@each_form
def test_starts_as_what_it_would_be_without(form: Form) -> None:
    for ridge in (0.0, 0.05):
        fresh = DICTIONARIES[0].layer(learned=form.learned, ridge=ridge, dtype=torch.float64)
        plain = DICTIONARIES[0].layer(ridge=ridge, dtype=torch.float64)
        plain.load_state_dict({k: v for k, v in fresh.state_dict().items() if not k.startswith("learned.")})
        torch.testing.assert_close(fresh(inputs()), plain(inputs()))


@each_form
def test_energy_falls_or_says_why_there_is_none(form: Form) -> None:
    layer = form.layer(t1=30.0)
    if form.has_energy:
        assert (layer.energy(inputs()).diff(dim=0) <= 1e-12).all()
    else:
        with pytest.raises(ValueError, match="a rotation is no gradient"):
            layer.energy(inputs())
    residual = layer.kkt_residual(inputs())
    assert (residual[-1] < 0.1 * residual[0]).all()


def test_coupling_is_the_symmetric_form_of_the_factor() -> None:
    layer = FORMS[1].layer(ridge=0.0)
    plain, _ = Form(False).layer(ridge=0.0).problem(inputs())
    args, _ = layer.problem(inputs())
    coupling = layer.learned.coupling
    torch.testing.assert_close(args.gram, coupling.T @ plain.dense_gram @ coupling)
    torch.testing.assert_close(args.drive, plain.drive)  # drive and read-out stay
    assert bool((torch.linalg.eigvalsh(args.gram) > -1e-12).all())
    assert bool((1 / args.rate.squeeze() >= torch.linalg.matrix_norm(args.gram, 2)).all())  # the bound is that of H


@pytest.mark.parametrize("ridge", [0.1, 0.3])
def test_monotone_operator_and_its_step(ridge: float) -> None:
    layer = FORMS[3].layer(ridge=ridge)
    with torch.no_grad():
        layer.learned.rotation.mul_(6)  # as large as the rest
    args, _ = layer.problem(inputs())
    assert isinstance(args.gram, MonotoneGram)
    matrix = args.gram.matrix
    symmetric, skew = (matrix + matrix.mT) / 2, (matrix - matrix.mT) / 2
    assert skew.abs().max() > 0.1
    rate = layer.learned.symmetric_part(Form(False).layer(ridge=0.0).problem(inputs())[0].dense_gram)
    mu = ridge * torch.linalg.matrix_norm(rate, 2)
    assert bool((torch.linalg.eigvalsh(symmetric).amin(-1) >= 0.9 * mu).all())  # strongly monotone
    step = torch.eye(matrix.shape[-1], dtype=matrix.dtype) - args.rate * matrix
    assert bool((torch.linalg.matrix_norm(step, 2) <= 1).all())  # and a step is non-expansive
    twice, _ = layer.problem(torch.cat([inputs()] * 2))
    starts = torch.cat([torch.zeros_like(args.drive), torch.randn_like(args.drive)])
    ends = solvers.solve(ProximalFlow(), starts, solver=RELAXATION["fixed_point"], args=twice).y1
    torch.testing.assert_close(*ends.chunk(2), rtol=0, atol=1e-8)


def test_momentum_is_refused_for_a_rotation() -> None:
    with pytest.raises(ValueError, match="momentum needs steps along a gradient"):
        FORMS[3].layer(solver="nesterov")(inputs())


@pytest.mark.parametrize("field", [ProximalFlow(), LCA()], ids=lambda field: type(field).__name__)
@pytest.mark.parametrize("ridge", [0.01, 0.3])
def test_elastic_net_of_scikit_learn(field: ProximalFlow | LCA, ridge: float) -> None:
    layer = DICTIONARIES[0].layer(ridge=ridge, sparsity=0.1, dtype=torch.float64, solver=RELAXATION["douglas_rachford"])
    layer.field = field
    with torch.no_grad():
        args, read_out = layer.problem(inputs())
        code = field.code(layer.solve(inputs()).y1, args)
    plain, _ = DICTIONARIES[0].layer(dtype=torch.float64).problem(inputs())
    mu = ridge / plain.rate  # L of the plain Gram
    values = layer.queries_keys_values(inputs())[2].detach()
    count = values.shape[2]
    for index in ((0, 0), (1, 1)):
        templates, target = read_out.templates[index].detach().numpy(), values[index].numpy()
        l1, l2 = 0.1, float(mu[index].squeeze())
        model = ElasticNet((l1 + l2) / count, l1_ratio=l1 / (l1 + l2), fit_intercept=False, tol=1e-14, max_iter=10**6)
        expected = torch.from_numpy(model.fit(templates, target).coef_.T)
        torch.testing.assert_close(code[index], expected, rtol=0, atol=1e-6)
    assert kkt_residual(code, args).max() < 1e-9
    assert (energy(code, args) <= energy(code + 1e-3 * torch.randn_like(code), args)).all()


def test_elastic_net_in_the_fourier_domain() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 20, 6, dtype=torch.float64)
    ends = []
    for solver in RELAXATION.values():
        layer = VARSConvAttention(6, (4, 5), dtype=torch.float64, ridge=0.1, sparsity=0.5, solver=solver)
        layer.load_state_dict(ends[0][0].state_dict() if ends else layer.state_dict())
        args, _ = layer.problem(x)
        ends.append((layer, layer.solve(x).y1))
        assert kkt_residual(ends[-1][1], args).max() < 1e-8
    for _, end in ends[1:]:
        torch.testing.assert_close(end, ends[0][1], rtol=0, atol=1e-8)
    plain = VARSConvAttention(6, (4, 5), dtype=torch.float64, sparsity=0.5, solver=RELAXATION["nesterov"])
    plain.load_state_dict(ends[0][0].state_dict())
    assert plain.solve(x).y1.abs().sum() > 1.01 * ends[0][1].abs().sum()  # the ridge shrinks


def active_set_gradient(layer: VARSAttention, x: Tensor) -> list[Tensor]:
    """Gradients of |a|^2 by differentiating a_S = H_SS^-1 (b_S - lam sign a_S) on the support found."""
    args, _ = layer.problem(x)
    matrix = args.gram if isinstance(args.gram, Tensor) else args.gram.matrix
    with torch.no_grad():
        code = layer.field.code(layer.solve(x).y1, args)
    support = (code != 0).to(code.dtype).mT
    identity = torch.diag_embed(1 - support)
    system = matrix[..., None, :, :] * support[..., :, None] * support[..., None, :] + identity
    exact = torch.linalg.solve(system, (support * (args.drive - args.sparsity * code.sign()).mT)[..., None])[..., 0]
    return list(torch.autograd.grad(exact.square().sum(), trained(layer)))


def trained(layer: VARSAttention) -> list[Tensor]:
    return [layer.qkv.weight, *layer.learned.parameters()]


@each_form
@pytest.mark.parametrize("dynamics", ["proximal", "lca"])
@pytest.mark.parametrize("ridge", [0.01, 0.05])
def test_implicit_gradient_is_that_of_the_active_set(form: Form, dynamics: str, ridge: float) -> None:
    layer = form.layer(ridge=ridge, dynamics=dynamics, solver=RELAXATION["douglas_rachford"], adjoint="implicit")
    expected = active_set_gradient(layer, inputs())
    args, _ = layer.problem(inputs())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        code = layer.field.code(layer.solve(inputs()).y1, args)
        found = torch.autograd.grad(code.square().sum(), trained(layer))
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() <= 1e-6 * theirs.norm()


def test_the_fields_own_system_and_gmres_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = FORMS[3].layer(solver=RELAXATION["douglas_rachford"], adjoint="implicit")
    found = []
    for own in (True, False):
        if not own:
            monkeypatch.setattr(ProximalFlow, "solve_transposed", lambda *given: None)
        layer.zero_grad()
        layer(inputs()).square().sum().backward()
        found.append([parameter.grad.clone() for parameter in layer.parameters()])
    torch.testing.assert_close(*found, rtol=1e-7, atol=1e-9)


def test_singular_supports_go_on_to_gmres() -> None:
    """Two equal templates: the code is not unique, and the field's own system has no solution to give."""
    from core_cases import lasso_problem

    _, _, args = lasso_problem("duplicate", sparsity=0.01)
    drive = args.drive.clone().requires_grad_()
    solver = RELAXATION["nesterov"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", solvers.SolverWarning)
        y1 = solvers.solve(
            ProximalFlow(), torch.zeros_like(drive), solver=solver, args=args._replace(drive=drive), adjoint="implicit"
        ).y1
        (gradient,) = torch.autograd.grad((args.dense_gram @ y1).square().sum(), drive)  # which is unique
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("steps", [1, 5, 50])
def test_truncated_gradients_are_partial_sums_of_the_implicit_one(steps: int) -> None:
    layer = FORMS[1].layer(solver=RELAXATION["douglas_rachford"])
    args, _ = layer.problem(inputs())
    leaves = args._replace(drive=args.drive.detach().requires_grad_(), gram=args.dense_gram.detach())
    leaves = leaves._replace(rate=leaves.rate.detach())

    def gradient(adjoint: object) -> Tensor:
        y1 = solvers.solve(
            layer.field, torch.zeros_like(args.drive), solver=layer.solver, args=leaves, adjoint=adjoint
        ).y1
        return torch.autograd.grad(y1.square().sum(), leaves.drive)[0]

    with torch.no_grad():
        y1 = layer.solve(inputs()).y1
        mask = (y1 != 0).to(y1.dtype)
        term, total = 2 * y1, torch.zeros_like(y1)
        for _ in range(steps):  # (dT/db)^T sum_n (J^T)^n dL/dy with J = D (I - eta H), dT/db = eta D
            total = total + leaves.rate * mask * term
            term = mask * term - leaves.rate * (leaves.gram.mT @ (mask * term))
    found, exact = gradient(solvers.Truncated(steps)), gradient("implicit")
    torch.testing.assert_close(found, total, rtol=1e-6, atol=1e-9)  # the equilibrium is known to 1e-11
    cosine = torch.nn.functional.cosine_similarity(found.flatten(), exact.flatten(), dim=0)
    assert cosine > (0.5 if steps == 1 else 0.8)
    if steps == 50:
        assert cosine > 0.999


def test_ridge_is_a_setting() -> None:
    layer = FORMS[0].layer()
    layer.ridge = 0.2
    assert layer.settings()["ridge"] == 0.2
    with pytest.raises(ValueError, match="ridge must be a finite number of at least 0"):
        layer.ridge = -1.0
    with pytest.raises(ValueError, match="ridge must be"):
        VARSAttention(8, 2, ridge=float("nan"))
    assert len(GRID) == 2
