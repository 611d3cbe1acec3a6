"""The fields against the mathematics they stand for: ISTA, the lasso, Rozell's network; thresholds and step bounds."""

import pytest
import torch
import torch.nn.functional as F
from core_cases import TEMPLATES, lasso_problem, templates
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Lasso

import solvers
from vars_ode import LCA, ProximalFlow, ReconstructionArgs, energy, kkt_residual
from vars_ode.dictionaries.random_features import gaussian_projection, log_features, unit_columns
from vars_ode.dictionaries.softmax import normalized_kernel
from vars_ode.fields import THRESHOLDS, FactoredArgs, gelu_threshold, soft_threshold
from vars_ode.rates import RATES, gershgorin_rate, power_rate

FIELDS = (ProximalFlow(), LCA())
EXACT = solvers.FixedPoint(max_steps=200_000, rtol=0.0, atol=1e-13)


def ista(args, steps, start):
    """Iterates 0, ..., steps of ISTA, written out."""
    a, iterates = start, [start]
    for _ in range(steps):
        a = a - args.rate * (args.gram @ a - args.drive)
        threshold = args.rate * args.sparsity
        a = torch.sign(a) * torch.clamp(a.abs() - threshold, min=0)
        iterates.append(a)
    return torch.stack(iterates)


@pytest.mark.parametrize("kind", TEMPLATES)
@pytest.mark.parametrize("start", ["zero", "feedforward"])
@pytest.mark.parametrize("field", FIELDS, ids=repr)
def test_euler_with_unit_steps_is_ista(field, start, kind):
    _, _, args = lasso_problem(kind)
    y0 = torch.zeros_like(args.drive) if start == "zero" else field.feedforward(args)
    states = solvers.solve(field, y0, t1=20.0, solver="euler", args=args, save_at="steps").ys
    codes = torch.stack([field.code(state, args) for state in states])
    a0 = torch.zeros_like(args.drive) if start == "zero" else soft_threshold(args.drive, args.sparsity)
    torch.testing.assert_close(codes, ista(args, 20, a0), rtol=0, atol=1e-12)


def test_lca_at_unit_rate_is_the_equation_of_rozell():
    _, _, args = lasso_problem()
    args = args._replace(rate=torch.ones_like(args.rate))
    u = torch.randn_like(args.drive)
    a = u.sign() * (u.abs() - args.sparsity).clamp_min(0)
    inhibition = args.gram - torch.eye(args.gram.shape[-1], dtype=u.dtype)
    torch.testing.assert_close(LCA()(0.0, u, args), args.drive - u - inhibition @ a, rtol=0, atol=1e-13)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    kind=st.sampled_from(TEMPLATES),
    m=st.integers(1, 12),
    sparsity=st.floats(0.0, 3.0),
    fraction=st.floats(0.01, 1.0),
    dt=st.floats(0.05, 1.0),
)
def test_energy_never_rises(seed, kind, m, sparsity, fraction, dt):
    torch.manual_seed(seed)
    _, _, args = lasso_problem(kind, m=m, sparsity=sparsity)
    args = args._replace(rate=args.rate * fraction)
    for field in FIELDS:
        for y0 in (torch.zeros_like(args.drive), field.feedforward(args), 3 * torch.randn_like(args.drive)):
            states = solvers.solve(field, y0, t1=12 * dt, solver=solvers.Euler(dt=dt), args=args, save_at="steps").ys
            energies = torch.stack([energy(field.code(state, args), args) for state in states])
            assert (energies.diff(dim=0) <= 1e-12 * energies.abs().amax(0).clamp_min(1)).all()


def test_a_rate_above_the_bound_diverges_on_coherent_templates():
    _, _, args = lasso_problem("coherent", tokens=49, m=32)
    args = args._replace(rate=torch.ones_like(args.rate))
    states = solvers.solve(ProximalFlow(), torch.zeros_like(args.drive), t1=3.0, args=args, save_at="steps").ys
    energies = torch.stack([energy(state, args) for state in states])
    assert (energies[-1] > energies[0] + 1).all()


@pytest.mark.parametrize("field", FIELDS, ids=repr)
@pytest.mark.parametrize("kind", ["gaussian", "coherent"])
def test_equilibrium_is_the_lasso_of_scikit_learn(field, kind):
    phi, values, args = lasso_problem(kind, sparsity=0.2)
    solution = solvers.solve(field, torch.zeros_like(args.drive), solver=EXACT, args=args)
    assert (solution.status == solvers.Status.STEADY_STATE).all()
    code = field.code(solution.y1, args)
    assert kkt_residual(code, args).max() < 1e-8
    assert (code == 0).any(), "the problem is too easy: nothing is sparse"
    for i in range(len(phi)):  # scikit-learn minimises 1/(2 n) |v - Phi a|^2 + alpha |a|_1, so alpha = lam / n
        reference = Lasso(alpha=0.2 / phi.shape[1], fit_intercept=False, tol=1e-14, max_iter=1_000_000)
        expected = reference.fit(phi[i].numpy(), values[i].numpy()).coef_.T
        torch.testing.assert_close(code[i], torch.as_tensor(expected), rtol=0, atol=1e-8)


@pytest.mark.parametrize("field", FIELDS, ids=repr)
@pytest.mark.parametrize("solver", ["euler", "nesterov", "fixed_point", "rk4"])
def test_orthonormal_templates_have_a_closed_form(field, solver):
    phi, values, args = lasso_problem("orthonormal")
    expected = soft_threshold(phi.mT @ values, 0.3)
    if solver == "rk4":
        solver = solvers.RK4(num_steps=100)
    y1 = solvers.solve(field, torch.zeros_like(args.drive), t1=40.0, solver=solver, args=args).y1
    torch.testing.assert_close(field.code(y1, args), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", TEMPLATES)
def test_both_dynamics_and_both_relaxations_find_the_same_reconstruction(kind):
    phi, _, args = lasso_problem(kind)
    found = {}
    for field in FIELDS:
        for solver in (EXACT, solvers.Nesterov(max_steps=50_000, rtol=0.0, atol=1e-13)):
            solution = solvers.solve(field, field.feedforward(args), solver=solver, args=args)
            assert solution.success.all(), (field, solver, solution.describe())
            code = field.code(solution.y1, args)
            assert kkt_residual(code, args).max() < 1e-8
            found[field, type(solver)] = phi @ code  # unique also where duplicate templates share a code
    first, *others = found.values()
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=1e-9)


@pytest.mark.parametrize("field", FIELDS, ids=repr)
def test_field_rests_exactly_where_the_optimality_conditions_hold(field):
    _, _, args = lasso_problem()
    rest = solvers.solve(field, field.feedforward(args), solver=EXACT, args=args).y1
    assert field(0.0, rest, args).abs().max() < 1e-12
    moved = rest + 0.1 * torch.randn_like(rest)
    assert field(0.0, moved, args).abs().max() > 1e-3
    assert (kkt_residual(field.code(moved, args), args) > 1e-3).all()


def test_solvers_walk_towards_the_same_flow():
    """LCA and ProximalFlow differ on the way, each solver agrees with the finest one on where its flow goes."""
    _, _, args = lasso_problem("coherent")
    for field in FIELDS:
        ends = {
            n: solvers.solve(field, torch.zeros_like(args.drive), t1=3.0, solver=solvers.RK4(num_steps=n), args=args).y1
            for n in (30, 120)
        }
        torch.testing.assert_close(ends[30], ends[120], rtol=0, atol=5e-4)  # a kink costs RK4 of dt = 0.1 its order


@pytest.mark.parametrize("rate", [0.2, 1.0, 1.7])
@pytest.mark.parametrize("field", FIELDS, ids=repr)
def test_feedforward_state_stands_for_the_thresholded_drive(field, rate):
    _, _, args = lasso_problem()
    args = args._replace(rate=torch.full_like(args.rate, rate))
    code = field.code(field.feedforward(args), args)
    torch.testing.assert_close(code, soft_threshold(args.drive, args.sparsity), rtol=0, atol=1e-14)


def test_energy_is_the_reconstruction_error_and_the_norm():
    phi, values, args = lasso_problem()
    a = torch.randn_like(args.drive)
    error = 0.5 * (values - phi @ a).square().sum((-2, -1)) - 0.5 * values.square().sum((-2, -1))
    torch.testing.assert_close(energy(a, args), error + 0.3 * a.abs().sum((-2, -1)), rtol=1e-12, atol=1e-12)
    assert energy(a, args).shape == (2,)


def test_kkt_residual_by_hand():
    one = torch.ones(1, 1, dtype=torch.float64)
    args = ReconstructionArgs(drive=2 * one, gram=one, rate=one, sparsity=0.5 * one)
    for code, expected in ((1.5, 0.0), (0.0, 1.5), (2.0, 0.5), (-1.0, 3.5)):
        assert kkt_residual(code * one, args).item() == pytest.approx(expected)
    assert kkt_residual(0 * one, args._replace(drive=0.4 * one)).item() == 0


def test_energy_gradient_is_the_optimality_condition():
    _, _, args = lasso_problem()
    a = torch.randn_like(args.drive, requires_grad=True)
    (gradient,) = torch.autograd.grad(energy(a, args).sum(), a)
    torch.testing.assert_close(kkt_residual(a, args), gradient.abs().amax((-2, -1)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("measure", [energy, kkt_residual])
def test_a_factored_problem_has_no_energy(measure):
    _, _, args = lasso_problem()
    with pytest.raises(ValueError, match=r'no energy.*learned="dictionary"'):
        measure(args.drive, FactoredArgs(*args))


@pytest.mark.parametrize("field", [ProximalFlow, LCA])
def test_unknown_threshold(field):
    with pytest.raises(ValueError, match=r"unknown threshold 'hard'; choose one of soft, gelu"):
        field("hard")


@pytest.mark.parametrize("field", FIELDS, ids=repr)
@pytest.mark.parametrize("adjoint", ["direct", "checkpointed"])
def test_gradients_reach_all_that_a_problem_consists_of(field, adjoint):
    _, _, args = lasso_problem(m=3, d=2)

    def end(y0, *tensors):
        problem = ReconstructionArgs(*tensors)
        return solvers.solve(field, y0, t1=3.0, solver="euler", args=problem, adjoint=adjoint).y1

    inputs = [tensor.clone().requires_grad_() for tensor in (torch.randn_like(args.drive), *args)]
    assert torch.autograd.gradcheck(end, inputs, atol=1e-6)


class TestSoftThreshold:
    def test_closed_form(self):
        x = torch.tensor([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0])
        expected = torch.tensor([-2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0])
        assert torch.equal(soft_threshold(x, 1.0), expected)
        assert torch.equal(soft_threshold(x, torch.tensor(1.0)), expected)

    def test_it_is_the_proximal_operator_of_the_norm(self):
        grid = torch.linspace(-4, 4, 8001, dtype=torch.float64)
        for x in (-2.3, -0.4, 0.0, 0.7, 3.1):
            best = grid[(0.5 * (grid - x) ** 2 + 0.8 * grid.abs()).argmin()]
            assert soft_threshold(torch.tensor(x), 0.8).item() == pytest.approx(best.item(), abs=1e-3)

    @pytest.mark.parametrize("shape", [(), (1,), (1, 1), (2, 1, 1), (2, 4, 3)])
    def test_derivatives_to_second_order_for_every_way_to_broadcast(self, shape):
        x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
        threshold = (0.2 + 0.3 * torch.rand(shape, dtype=torch.float64)).requires_grad_()
        assert torch.autograd.gradcheck(soft_threshold, (x, threshold))
        assert torch.autograd.gradgradcheck(lambda a, t: soft_threshold(a, t).square(), (x, threshold))

    def test_derivatives_agree_with_the_formula_written_out(self):
        x = torch.randn(50, dtype=torch.float64, requires_grad=True)
        threshold = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
        got = torch.autograd.grad(soft_threshold(x, threshold).square().sum(), (x, threshold))
        written = x.sign() * (x.abs() - threshold).clamp_min(0)
        torch.testing.assert_close(got, torch.autograd.grad(written.square().sum(), (x, threshold)))

    def test_without_threshold_it_is_the_identity_and_so_is_its_derivative_also_at_zero(self):
        x = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
        result = soft_threshold(x, torch.tensor(0.0))
        assert torch.equal(result, x)
        (gradient,) = torch.autograd.grad(result.sum(), x)
        assert torch.equal(gradient, torch.ones(3))

    def test_nan_is_not_swallowed(self):
        assert soft_threshold(torch.tensor([float("nan")]), torch.tensor(1.0)).isnan().all()

    def test_under_vmap(self):
        x, threshold = torch.randn(5, 3), torch.rand(5)
        expected = soft_threshold(x, threshold[:, None])
        assert torch.equal(torch.vmap(soft_threshold)(x, threshold), expected)
        gradient = torch.vmap(torch.func.grad(lambda a, t: soft_threshold(a, t).sum()))(x, threshold)
        assert torch.equal(gradient, (expected != 0).float())


def test_gelu_threshold_is_what_it_says_and_no_shrinkage():
    x = torch.linspace(-3, 3, 13, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(gelu_threshold(x, 0.5), x.sign() * F.gelu(x.abs() - 0.5))
    assert (gelu_threshold(torch.tensor([0.3]), 0.5) < 0).all()  # the sign turns over: soft gives 0
    threshold = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    inside = torch.randn(7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gelu_threshold, (inside, threshold))


@pytest.mark.parametrize("name", THRESHOLDS)
def test_thresholds_are_odd(name):
    x = torch.randn(20, dtype=torch.float64)
    torch.testing.assert_close(THRESHOLDS[name](-x, 0.3), -THRESHOLDS[name](x, 0.3), rtol=0, atol=0)


def random_feature_gram(tokens, m, dtype=torch.float32):
    projection = gaussian_projection(2, 16, m, False, None)
    phi, _ = unit_columns(log_features(torch.randn(3, 2, tokens, 16), projection, True), None)
    return (phi.mT @ phi).to(dtype)


def signed_gram():
    phi = templates("gaussian", 4, 20, 15).float()
    return phi.mT @ phi


def masked_gram():
    bias = torch.zeros(12).masked_fill(torch.arange(12) > 7, float("-inf"))
    return normalized_kernel(torch.randn(3, 2, 12, 8), bias[None, None, None])


GRAMS = {
    "signed": signed_gram,
    "positive": lambda: random_feature_gram(49, 32),
    "float64": lambda: random_feature_gram(49, 8, torch.float64),
    "zero": lambda: torch.zeros(2, 3, 5, 5),
    "identity": lambda: torch.eye(6).expand(2, 6, 6),
    "one": lambda: torch.full((2, 1, 1), 0.7),
    "scaled": lambda: 1e4 * random_feature_gram(9, 12),
    "tiny": lambda: 1e-12 * random_feature_gram(9, 12),
    "diagonal": lambda: torch.diag(torch.tensor([1e-6, 1.0, 1e3])).expand(2, 3, 3),
    "negative": lambda: -random_feature_gram(20, 12),
    "masked kernel": masked_gram,
    "kernel": lambda: normalized_kernel(torch.randn(3, 2, 12, 8)),
}


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("kind", GRAMS)
def test_rates_never_exceed_the_inverse_of_the_norm(rate, kind):
    gram = GRAMS[kind]()
    norm = torch.linalg.matrix_norm(gram.double(), 2)
    found = RATES[rate](gram)
    assert found.shape == (*gram.shape[:-2], 1, 1)
    assert found.dtype == gram.dtype
    assert found.isfinite().all()
    assert (found > 0).all()
    assert ((1 / found.double())[..., 0, 0] >= norm * (1 - 1e-6)).all()


@settings(max_examples=50, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), m=st.integers(1, 20), scale=st.floats(-3, 3), positive=st.booleans())
def test_rates_bound_the_norm_of_any_symmetric_matrix(seed, m, scale, positive):
    torch.manual_seed(seed)
    gram = torch.randn(3, m, m, dtype=torch.float64)
    gram = (gram.abs() if positive else gram) * torch.rand(3, m, m, dtype=torch.float64).round() * 10**scale
    gram = gram + gram.mT
    norm = torch.linalg.matrix_norm(gram, 2)
    for rate in RATES.values():
        assert ((1 / rate(gram))[..., 0, 0] >= norm * (1 - 1e-9)).all()


@pytest.mark.parametrize("m", [8, 32, 64])
def test_power_is_tight_on_positive_grams_and_gershgorin_is_not(m):
    gram = random_feature_gram(49, m)
    norm = torch.linalg.matrix_norm(gram, 2)
    assert (1 / power_rate(gram)[..., 0, 0] <= 1.1 * norm).all()
    assert (power_rate(gram) >= gershgorin_rate(gram)).all()
    assert (1 / gershgorin_rate(gram)[0, 0, 0, 0]).item() == pytest.approx(
        gram[0, 0].sum(-1).max().item() + 1, rel=1e-6
    )


def test_rates_carry_no_gradient():
    gram = random_feature_gram(9, 4).requires_grad_()
    assert not any(rate(gram).requires_grad for rate in RATES.values())
