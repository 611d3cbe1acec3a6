"""What every dictionary owes a layer, by one row in the table of `core_cases`, and what is particular to each."""

import math

import pytest
import torch
import torch.nn.functional as F
from core_cases import DICTIONARIES, DIM, FIXED_SIZE, HEADS, TOKENS, case_id, key_mask, tokens

import solvers
from vars_ode import Dynamic, ReconstructionArgs, Softmax, StaticDynamic, VARSAttention, dictionaries
from vars_ode.dictionaries import Shape
from vars_ode.dictionaries.random_features import gaussian_projection, log_features, unit_columns
from vars_ode.dictionaries.softmax import normalized_kernel
from vars_ode.fields import FactoredGram

every_dictionary = pytest.mark.parametrize("case", DICTIONARIES, ids=case_id)
NEG_INF = float("-inf")


def test_every_registered_dictionary_has_a_row():
    assert {case.name for case in DICTIONARIES} == set(dictionaries.available())


def heads(count=TOKENS, dtype=torch.float64, dim=DIM // HEADS):
    """Queries, keys and values (2, heads, count, head_dim)."""
    return torch.randn(3, 2, HEADS, count, dim, dtype=dtype).unbind(0)


def state(case, q, k, v, **options):
    shape = Shape(HEADS, q.shape[-1], None, True)
    torch.manual_seed(1)
    templates = case.choice.build(shape, dtype=q.dtype)
    return templates, templates(q, q if case.tied else k, v, **options)


@every_dictionary
class TestEveryDictionary:
    def test_shapes_and_kind_of_problem(self, case):
        q, k, v = heads()
        built, problem = state(case, q, k, v)
        m = TOKENS if case.plus is None else case.plus * 2 * (DIM // HEADS)
        assert problem.drive.shape == (2, HEADS, m, DIM // HEADS)
        assert problem.gram.shape == (2, HEADS, m, m)
        assert problem.read_out(problem.drive).shape == v.shape
        assert built.num_templates == (m if case.fixed_size else None)
        assert built.tied == case.tied
        assert problem.gram.dtype == problem.drive.dtype == torch.float64

    def test_gram_is_symmetric_and_positive(self, case):
        _, problem = state(case, *heads())
        torch.testing.assert_close(problem.gram, problem.gram.mT, rtol=0, atol=1e-14)
        assert torch.linalg.eigvalsh(problem.gram).min() > -1e-12

    def test_number_of_features(self, case):
        if case.plus is None:
            with pytest.raises(ValueError, match="one template per token, got num_features=5"):
                case.layer(num_features=5)
        else:
            assert case.layer(num_features=5).solve(tokens()).y1.shape[-2] == 5 * case.plus

    def test_choice_is_a_value(self, case):
        assert case.choice == type(case.choice)(**vars(case.choice))
        assert hash(case.choice) == hash(type(case.choice)(**vars(case.choice)))
        assert case.layer().dictionary is not case.layer().dictionary

    @pytest.mark.parametrize("bias", [None, "boolean", "additive"])
    def test_drive_read_out_and_gram_belong_together(self, case, bias):
        """Gram and drive come from the same templates, weighted by the mask; the read-out is without the weights."""
        q, k, v = heads()
        if bias == "boolean":
            bias = torch.zeros(TOKENS, dtype=q.dtype).masked_fill(~key_mask(8), NEG_INF)
        elif bias == "additive":
            bias = torch.randn(2, 1, 1, TOKENS, dtype=q.dtype)
            bias = bias - bias.amax(-1, keepdim=True)
        _, problem = state(case, q, k, v, key_bias=bias)
        assert problem.gram.isfinite().all()
        assert torch.linalg.matrix_norm(problem.gram, 2).max() <= problem.gram.shape[-1] + 1e-9
        if case.fixed_size:
            weights = 1.0 if bias is None else bias.mT.exp()
            write = weights * problem.read_out.templates
            torch.testing.assert_close(write.mT @ write, problem.gram)
            torch.testing.assert_close(write.mT @ v, problem.drive)

    def test_masked_tokens_cannot_influence_the_others(self, case):
        layer = case.layer(solver="nesterov")
        x, kept = tokens(), 8
        changed = torch.cat([x[:, :kept], 1e3 * torch.randn_like(x[:, kept:])], 1)
        for solver in ("euler", "rk4", solvers.Nesterov(max_steps=300)):
            layer.solver = solver
            first, second = (layer(y, attn_mask=key_mask(kept)) for y in (x, changed))
            assert torch.equal(first[:, :kept], second[:, :kept])
            assert second.isfinite().all()

    def test_masking_in_the_middle_of_the_batch(self, case):
        """Each image has its own mask, and none sees another's."""
        layer, x = case.layer(), tokens(3)
        masks = torch.rand(3, 1, 1, TOKENS) > 0.4
        masks[..., 0] = True
        together = layer(x, attn_mask=masks)
        for i in range(3):
            torch.testing.assert_close(together[i], layer(x[i : i + 1], attn_mask=masks[i : i + 1])[0])

    def test_masking_keys_is_deleting_tokens(self, case):
        layer, x, kept = case.layer(dtype=torch.float64), tokens(dtype=torch.float64), 8
        scattered = torch.tensor([0, 1, 3, 4, 6, 7, 9, 11])
        for index in (torch.arange(kept), scattered):
            mask = torch.zeros(TOKENS, dtype=torch.bool).index_fill(0, index, True)[None, None, None]
            masked = layer(x, attn_mask=mask)[:, index]
            if case.positional:  # a shorter sequence is another grid; rows of zeros in the static block would do
                continue
            torch.testing.assert_close(masked, layer(x[:, index]), rtol=0, atol=1e-13)

    def test_an_open_mask_is_no_mask(self, case):
        layer, x = case.layer(), tokens()
        expected = layer(x)
        for mask in (key_mask(TOKENS), torch.zeros(1, 1, 1, TOKENS), torch.ones(TOKENS, TOKENS, dtype=torch.bool)):
            torch.testing.assert_close(layer(x, attn_mask=mask), expected)

    def test_what_is_common_to_all_keys_means_nothing(self, case):
        layer, x = case.layer(dtype=torch.float64, rate=0.1), tokens(dtype=torch.float64)
        bias = torch.randn(2, 1, 1, TOKENS, dtype=x.dtype)
        expected = layer(x, attn_mask=bias)
        for shift in (-300.0, 3.0, 300.0):
            torch.testing.assert_close(layer(x, attn_mask=bias + shift), expected, rtol=0, atol=1e-11)

    @pytest.mark.parametrize("value", [-1e4, torch.finfo(torch.float32).min])
    def test_very_negative_biases_are_masks(self, case, value):
        layer, x, kept = case.layer(), tokens(), 8
        bias = torch.zeros(1, 1, 1, TOKENS).masked_fill(~key_mask(kept), value)
        with_bias, with_mask = (layer(x, attn_mask=mask)[:, :kept] for mask in (bias, key_mask(kept)))
        torch.testing.assert_close(with_bias, with_mask, rtol=0, atol=1e-6)

    def test_masks_of_every_shape_that_broadcasts(self, case):
        layer, x = case.layer(), tokens()
        keys = torch.arange(TOKENS) < 8
        expected = layer(x, attn_mask=keys[None, None, None])
        for shape in ((1, TOKENS), (1, 1, TOKENS), (2, 1, 1, TOKENS), (1, HEADS, 1, TOKENS), (TOKENS, TOKENS)):
            torch.testing.assert_close(layer(x, attn_mask=keys.expand(shape)), expected)
            torch.testing.assert_close(layer(x, attn_mask=keys.expand(shape).contiguous()), expected)

    @pytest.mark.parametrize("dynamics", ["proximal", "lca"])
    @pytest.mark.parametrize("kept", [0, 1, 5])
    def test_gradients_stay_finite_behind_masks(self, case, dynamics, kept):
        layer, x = case.layer(dynamics=dynamics), tokens().requires_grad_()
        mask = torch.cat([key_mask(kept), key_mask(TOKENS)])
        out = layer(x, attn_mask=mask)
        out.square().sum().backward()
        assert out.isfinite().all()
        assert x.grad.isfinite().all()
        assert all(p.grad.isfinite().all() for p in layer.parameters() if p.grad is not None)
        assert layer.qkv.weight.grad.abs().max() > 0

    def test_gradient_of_an_additive_mask(self, case):
        layer = case.layer(dtype=torch.float64, rate=0.1, t1=2.0)
        x = tokens(1, dtype=torch.float64)
        bias = torch.randn(1, 1, 1, TOKENS, dtype=x.dtype, requires_grad=True)
        assert torch.autograd.gradcheck(lambda b: layer(x, attn_mask=b), bias, fast_mode=True)

    def test_queries_of_any_size_stay_finite(self, case):
        q, k, v = heads(dtype=torch.float32)
        for scale in (0.0, 1e-20, 1e4):
            _, problem = state(case, scale * q, scale * k, v)
            assert problem.gram.isfinite().all()
            assert problem.read_out(problem.drive).isfinite().all()

    def test_masks_that_differ_between_queries_are_refused(self, case):
        layer, x = case.layer(), tokens()
        with pytest.raises(ValueError, match="differs between queries"):
            layer(x, is_causal=True)
        with pytest.raises(ValueError, match=r"\(batch, 1, 1, tokens\)"):
            layer(x, attn_mask=torch.rand(TOKENS, TOKENS))

    @pytest.mark.parametrize("count", [1, 2, 5, 7])
    def test_odd_and_tiny_token_counts(self, case, count):
        out = case.layer()(tokens(count=count))
        assert out.shape == (2, count, DIM)
        assert out.isfinite().all()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(TOKENS, dtype=torch.bool), r"got \(12,\); a key padding mask"),
        (torch.ones(2, TOKENS, dtype=torch.bool), r"got \(2, 12\)"),
        (torch.ones(7, 1, 1, TOKENS, dtype=torch.bool), r"\(2, 2, 12, 12\), got \(7, 1, 1, 12\)"),
        (torch.ones(2, 3, 1, TOKENS, dtype=torch.bool), r"got \(2, 3, 1, 12\)"),
        (torch.ones(1, 2, 1, 1, TOKENS, dtype=torch.bool), r"got \(1, 2, 1, 1, 12\)"),
        (torch.ones(1, 1, 1, TOKENS + 1, dtype=torch.bool), r"got \(1, 1, 1, 13\)"),
        (torch.ones(1, 1, 1, 1, dtype=torch.bool), r"got \(1, 1, 1, 1\)"),
        (torch.ones(1, 1, 1, TOKENS, dtype=torch.long), "boolean or floating point tensor, got torch.int64"),
        ([[True] * TOKENS], "boolean or floating point tensor, got list"),
    ],
)
@every_dictionary
def test_masks_that_do_not_fit(case, mask, message):
    with pytest.raises(ValueError, match=message):
        case.layer()(tokens(), attn_mask=mask)


@every_dictionary
def test_mask_and_causal_exclude_each_other(case):
    with pytest.raises(ValueError, match="exclude each other"):
        case.layer()(tokens(), attn_mask=key_mask(3), is_causal=True)


# random features


@pytest.mark.parametrize("orthogonal", [False, True])
def test_random_features_approach_softmax_attention_at_the_monte_carlo_rate(orthogonal):
    errors = softmax_errors(orthogonal)
    slope = ((errors[-1] / errors[0]).log() / math.log(FEATURES[-1] / FEATURES[0])).item()
    assert -0.6 < slope < -0.4, (slope, errors)


def test_orthogonal_features_are_no_worse():
    plain, orthogonal = softmax_errors(False), softmax_errors(True)
    assert (orthogonal < 1.05 * plain).all()
    assert orthogonal.mean() < plain.mean()


FEATURES = (32, 128, 512, 2048)


def softmax_errors(orthogonal, dim=16, count=20, seeds=24):
    """Root mean square error of phi phi^T with normalised rows against softmax(q q^T / sqrt(d)), by m.

    The variance grows with the exponential of |q|^2: long queries would show the rate at far larger m only.
    """
    generator = torch.Generator().manual_seed(3)
    q = 1.5 * F.normalize(torch.randn(count, dim, dtype=torch.float64, generator=generator), dim=-1)
    exact = (q @ q.T / math.sqrt(dim)).softmax(-1)
    errors = []
    for m in FEATURES:
        projection = gaussian_projection(seeds, dim, m, orthogonal, None).double()
        phi = log_features(q.expand(seeds, -1, -1), projection, normalize=False).exp()
        estimate = phi @ phi.mT
        errors.append((estimate / estimate.sum(-1, keepdim=True) - exact).square().mean().sqrt())
    return torch.stack(errors)


def test_orthogonal_directions():
    projection = gaussian_projection(500, 4, 10, True, None)
    assert projection.shape == (500, 4, 10)
    for block in (projection[..., :4], projection[..., 4:8], projection[..., 8:]):
        inner = F.normalize(block, dim=1).mT @ F.normalize(block, dim=1)
        torch.testing.assert_close(inner, torch.eye(block.shape[-1]).expand_as(inner), rtol=0, atol=1e-5)
    # uniform on the sphere: no side is preferred, and the norms are those of Gaussian vectors
    assert projection.mean(0).abs().max() < 0.2
    assert projection.square().sum(1).mean().item() == pytest.approx(4.0, rel=0.1)


def test_unit_columns_have_unit_norm_whatever_the_exponents():
    logs = 300 * torch.randn(2, 3, 10, 7)
    templates, same = unit_columns(logs, None)
    assert templates is same
    torch.testing.assert_close(templates.norm(dim=-2), torch.ones(2, 3, 7))
    assert (templates >= 0).all()


def test_read_out_of_masked_tokens_is_finite_even_when_their_features_are_far_larger():
    layer = DICTIONARIES[0].layer(normalize_queries=False, attn_head_dim=64)
    with torch.no_grad():
        layer.qkv.weight.mul_(100)
    x = tokens()
    x[:, 8:] = 0.0  # log features of the others lie hundreds below
    assert layer(x, attn_mask=key_mask(8)).isfinite().all()


def test_features_are_normalised_on_request():
    q = 5 * torch.randn(2, 1, 6, 8, dtype=torch.float64)
    projection = gaussian_projection(1, 8, 16, False, None).double()
    normalised = log_features(q, projection, True)
    torch.testing.assert_close(normalised, log_features(7 * q, projection, True))
    expected = (q / 8**0.25) @ projection - (q / 8**0.25).square().sum(-1, keepdim=True) / 2
    torch.testing.assert_close(log_features(q, projection, False), expected)


@pytest.mark.parametrize("name", ["dynamic", "static+dynamic"])
def test_projection_is_frozen_and_saved(name):
    layer = VARSAttention(DIM, HEADS, dictionary=name)
    saved = [key for key in layer.state_dict() if key.endswith("projection")]
    assert len(saved) == 1
    assert not any("projection" in key for key, _ in layer.named_parameters())
    assert layer.state_dict()[saved[0]].shape == (HEADS, DIM // HEADS, 2 * DIM // HEADS)


def test_dynamic_templates_by_hand():
    q, _, v = heads()
    built, problem = state(DICTIONARIES[0], q, q, v)
    unit = q / q.norm(dim=-1, keepdim=True)
    phi = (unit @ built.projection - 0.5).exp()
    phi = phi / phi.norm(dim=-2, keepdim=True)
    torch.testing.assert_close(problem.drive, phi.mT @ v)
    torch.testing.assert_close(problem.gram, phi.mT @ phi)
    torch.testing.assert_close(problem.read_out(problem.drive), phi @ phi.mT @ v)


# the softmax kernel


def test_softmax_problem_by_hand():
    q, k, v = heads()
    _, problem = state(DICTIONARIES[-1], q, k, v)
    kernel = (k @ k.mT / math.sqrt(k.shape[-1])).exp()
    scale = kernel.sum(-1).rsqrt()
    torch.testing.assert_close(problem.gram, scale[..., None] * kernel * scale[..., None, :])
    assert torch.equal(problem.drive, v)
    torch.testing.assert_close(problem.read_out(v), (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_softmax_gram_has_eigenvalues_between_zero_and_one(scale):
    values = torch.linalg.eigvalsh(normalized_kernel(scale * heads()[1]))
    assert values.min() > -1e-12
    assert values.max() <= 1 + 1e-12


# static templates


def static(choice, count, key_bias=None, heads=HEADS, m=5):
    templates = choice.build(Shape(heads, 4, m, True))
    return templates, templates.static_templates(count, key_bias, torch.float64)


def test_static_templates_on_their_own_grid_are_the_parameter_with_unit_columns():
    templates, (read, write) = static(StaticDynamic(grid=(3, 5)), 15)
    assert read is write
    torch.testing.assert_close(read[0], F.normalize(templates.static.double(), dim=-2))


@pytest.mark.parametrize(("grid", "count", "prefix"), [((3, 5), 17, 2), ((4, 4), 17, 1), ((4, 4), 9 + 5, 5)])
def test_prefix_tokens_take_no_part_in_static_templates(grid, count, prefix):
    for known in (None, prefix):
        _, (read, _) = static(StaticDynamic(grid=grid, num_prefix_tokens=known), count)
        assert (read[0, :, :prefix] == 0).all()
        assert (read[0, :, prefix:] != 0).all()
        torch.testing.assert_close(read.norm(dim=-2), torch.ones_like(read[..., 0, :]))


def test_static_templates_are_resampled_for_another_grid():
    choice = StaticDynamic(grid=(4, 6))
    templates = choice.build(Shape(1, 4, 1, True))
    row, column = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    with torch.no_grad():
        templates.static.copy_((row + 10 * column + 5).reshape(1, -1, 1))
    read, _ = templates.static_templates(36, None, torch.float64)
    image = read[0, 0, :, 0].reshape(6, 6)
    assert (image.diff(dim=0) > 0).all(), "rows got mixed up with columns"
    assert (image.diff(dim=1) > 0).all()
    assert image[0, -1] > image[-1, 0]


def test_resampled_static_templates_learn():
    layer = VARSAttention(DIM, HEADS, dictionary=StaticDynamic(grid=(2, 3)))
    layer(tokens(count=16)).sum().backward()
    assert layer.dictionary.static.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("choice", "count"),
    [
        (StaticDynamic(grid=(5, 5)), 34),
        (StaticDynamic(grid=(3, 4), num_prefix_tokens=1), 12),
        (StaticDynamic(grid=(3, 4), num_prefix_tokens=0), 13),
        (StaticDynamic(grid=(3, 4), num_prefix_tokens=5), 4),
    ],
)
def test_token_counts_that_are_no_grid(choice, count):
    with pytest.raises(ValueError, match=rf"{count} tokens are neither the static grid.*StaticDynamic\(grid="):
        VARSAttention(DIM, HEADS, dictionary=choice)(tokens(count=count))


@pytest.mark.parametrize("grid", [7, (7,), (0, 3), (2.0, 3), (1, 2, 3), "77", None])
def test_impossible_grids(grid):
    with pytest.raises(ValueError, match="grid must be"):
        StaticDynamic(grid=grid)


@pytest.mark.parametrize("prefix", [-1, 1.5, "1"])
def test_impossible_prefixes(prefix):
    with pytest.raises(ValueError, match="num_prefix_tokens must be"):
        StaticDynamic(num_prefix_tokens=prefix)


def test_grid_may_be_a_list():
    assert StaticDynamic(grid=[7, 5]) == StaticDynamic(grid=(7, 5))


# names


def test_dictionaries_by_name_and_by_object():
    assert dictionaries.get("dynamic", orthogonal=True) == Dynamic(orthogonal=True)
    assert dictionaries.get(Softmax()) == Softmax()
    with pytest.raises(ValueError, match=r"unknown dictionary 'dinamic' \(did you mean 'dynamic'\?\)"):
        VARSAttention(DIM, HEADS, dictionary="dinamic")
    with pytest.raises(ValueError, match="has no option 'grid'"):
        dictionaries.get("softmax", grid=(2, 2))
    with pytest.raises(ValueError, match="name of a dictionary"):
        VARSAttention(DIM, HEADS, dictionary=None)


# the learned recurrence


@pytest.mark.parametrize("case", FIXED_SIZE, ids=case_id)
@pytest.mark.parametrize("learned", ["factor", "dictionary"])
class TestLearned:
    def layers(self, case, learned, **options):
        return case.layer(**options), case.layer(learned=learned, **options)

    @pytest.mark.parametrize("threshold", ["soft", "gelu"])
    @pytest.mark.parametrize("rate", ["gershgorin", "power", 0.1])
    def test_starts_as_the_identity(self, case, learned, threshold, rate):
        plain, layer = self.layers(case, learned, rate=rate, threshold=threshold)
        layer.load_state_dict(plain.state_dict(), strict=False)
        torch.testing.assert_close(layer(tokens()), plain(tokens()), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("adjoint", ["direct", "checkpointed"])
    @pytest.mark.parametrize("dynamics", ["proximal", "lca"])
    def test_gradients_reach_every_parameter(self, case, learned, adjoint, dynamics):
        layer = case.layer(learned=learned, adjoint=adjoint, dynamics=dynamics)
        layer(tokens()).square().sum().backward()
        silent = [name for name, p in layer.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
        assert silent == []

    def test_checkpointed_gradients_are_those_of_backpropagation(self, case, learned):
        gradients = []
        for adjoint in ("direct", "checkpointed"):
            layer = case.layer(learned=learned, adjoint=adjoint, dtype=torch.float64)
            layer(tokens(dtype=torch.float64)).square().sum().backward()
            gradients.append([p.grad for p in layer.parameters()])
        torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def perturb(layer, size=0.1):
    with torch.no_grad():
        for parameter in layer.learned.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return layer


@pytest.mark.parametrize("case", FIXED_SIZE, ids=case_id)
@pytest.mark.parametrize("rate", ["gershgorin", "power"])
def test_learned_dictionary_descends_its_energy_wherever_training_takes_it(case, rate):
    layer = case.layer(learned="dictionary", rate=rate, t1=20.0, dtype=torch.float64)
    for size in (0.05, 0.3, 1.0):
        energies = perturb(layer, size).energy(tokens(dtype=torch.float64))
        assert energies.shape == (21, 2, HEADS)
        assert (energies.diff(dim=0) <= 1e-12).all()


def test_learned_dictionary_is_the_lasso_over_mixed_templates():
    layer = perturb(DICTIONARIES[0].layer(learned="dictionary", solver="nesterov", dtype=torch.float64))
    x = tokens(dtype=torch.float64)
    plain, _ = DICTIONARIES[0].layer(dtype=torch.float64).problem(x)
    args, read_out = layer.problem(x)
    mixing = layer.learned.mixing
    torch.testing.assert_close(args.gram, mixing.T @ plain.gram @ mixing)
    torch.testing.assert_close(args.drive, mixing.T @ plain.drive)
    templates = read_out.inner.templates @ mixing
    torch.testing.assert_close(templates.mT @ templates, args.gram)
    torch.testing.assert_close(read_out(args.drive), templates @ args.drive)


def test_learned_factor_is_the_formula_of_lista():
    layer = perturb(DICTIONARIES[0].layer(learned="factor", dtype=torch.float64))
    x = tokens(dtype=torch.float64)
    plain, _ = DICTIONARIES[0].layer(dtype=torch.float64).problem(x)
    args, read_out = layer.problem(x)
    learned = layer.learned
    assert isinstance(plain, ReconstructionArgs)
    assert isinstance(args.gram, FactoredGram)
    torch.testing.assert_close(args.gram.matrix, learned.factor @ plain.gram @ learned.factor)
    torch.testing.assert_close(args.drive, plain.drive)
    torch.testing.assert_close(args.rate, plain.rate * learned.rate_scale)  # the bound stays that of the plain Gram
    torch.testing.assert_close(args.sparsity, 0.3 * learned.sparsity_scale.abs())
    a = (args.drive.abs() - args.sparsity).clamp_min(0) * args.drive.sign()
    for _ in range(5):
        a = a - args.rate * (args.gram @ a - args.drive)
        a = (a.abs() - args.rate * args.sparsity).clamp_min(0) * a.sign()
    torch.testing.assert_close(layer.solve(x).y1, a, rtol=0, atol=1e-13)
    torch.testing.assert_close(read_out(a), layer.problem(x)[1].templates @ a)


def test_the_sign_of_the_learned_sparsity():
    """A negative factor means something to gelu only; the soft threshold takes its magnitude."""
    for threshold, sign in (("soft", 1), ("gelu", -1)):
        layer = DICTIONARIES[0].layer(learned="factor", threshold=threshold)
        with torch.no_grad():
            layer.learned.sparsity_scale.fill_(-2.0)
        assert layer.problem(tokens())[0].sparsity.item() == pytest.approx(sign * 0.6)


@pytest.mark.parametrize("options", [{"learned": "factor"}, {"threshold": "gelu"}])
@pytest.mark.parametrize("method", ["energy", "kkt_residual"])
def test_layers_without_an_energy_say_so(options, method):
    layer = DICTIONARIES[0].layer(**options)
    reason = "K G K" if "learned" in options else 'threshold="gelu"'
    with pytest.raises(ValueError, match=rf"descends no energy: .*{reason}"):
        getattr(layer, method)(tokens())


@pytest.mark.parametrize("learned", ["factor", "dictionary"])
def test_softmax_has_no_fixed_number_of_templates_to_learn_on(learned):
    with pytest.raises(ValueError, match=rf"learned='{learned}' needs a fixed number of templates"):
        DICTIONARIES[-1].layer(learned=learned)


@pytest.mark.parametrize("learned", [True, None, "lista", 0])
def test_unknown_learned_form(learned):
    with pytest.raises(ValueError, match=r"unknown learned form .*; choose one of factor, dictionary"):
        DICTIONARIES[0].layer(learned=learned)
