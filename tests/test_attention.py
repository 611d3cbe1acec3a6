"""The layer: its limit as softmax attention, its solve, masks, types, gradients, copies, and the errors it raises."""

import copy
import io
import itertools
import math
import pickle
import re
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from core_cases import DICTIONARIES, DIM, GRID, HEADS, TOKENS, case_id, key_mask, tokens
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import solvers
from vars_ode import LCA, ProximalFlow, StaticDynamic, VARSAttention, energy, kkt_residual
from vars_ode.learned import LEARNED_FORMS

every_dictionary = pytest.mark.parametrize("case", DICTIONARIES, ids=case_id)
DYNAMIC, ORTHOGONAL, STATIC, SOFTMAX, *_ = DICTIONARIES
HEAD_DIM = DIM // HEADS
LIMIT = {"sparsity": 0.0, "rate": 1.0, "initial": "zero", "t1": 1.0, "solver": "euler"}
ACCURATE = solvers.Nesterov(max_steps=20_000, rtol=0.0, atol=1e-11)


def projections(layer, x):
    """Queries, keys and values as the layer's qkv has them, (batch, heads, tokens, head_dim)."""
    parts = layer.qkv(x).reshape(*x.shape[:2], -1, HEADS, HEAD_DIM).permute(2, 0, 3, 1, 4)
    return parts[0], parts[0 if len(parts) == 2 else 1], parts[-1]


def merged(layer, heads):
    return layer.proj(heads.transpose(1, 2).flatten(2))


def additive(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def boolean(*shape):
    mask = additive(*shape) > -0.3
    mask[..., 0] = True  # torch leaves open what a query without keys sees
    return mask


class TestSingleStepLimit:
    """lam = 0, eta = 1, state zero, one Euler step of dt = 1: kernel attention, and exactly softmax attention."""

    MASKS: ClassVar = {
        "none": {},
        "boolean keys": {"attn_mask": boolean(2, 1, 1, TOKENS)},
        "additive keys": {"attn_mask": additive(2, 1, 1, TOKENS)},
        "boolean keys for all": {"attn_mask": boolean(1, TOKENS)},
        "causal": {"is_causal": True},
        "boolean": {"attn_mask": boolean(TOKENS, TOKENS)},
        "additive": {"attn_mask": additive(TOKENS, TOKENS)},
        "boolean by head": {"attn_mask": boolean(2, HEADS, TOKENS, TOKENS)},
        "additive by head": {"attn_mask": additive(1, HEADS, TOKENS, TOKENS)},
    }

    @pytest.mark.parametrize("dynamics", ["proximal", "lca"])
    @pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
    @pytest.mark.parametrize("mask", MASKS)
    @pytest.mark.parametrize("way", ["options", "method"])
    def test_is_scaled_dot_product_attention(self, way, mask, dtype, atol, dynamics):
        if way == "options":
            layer = SOFTMAX.layer(dynamics=dynamics, dtype=dtype, **LIMIT)
        else:
            layer = SOFTMAX.layer(dynamics=dynamics, dtype=dtype, t1=7.0, solver="rk4").single_step_limit()
        x, options = tokens(dtype=dtype), dict(self.MASKS[mask])
        got = layer(x, **options)
        if "attn_mask" in options and options["attn_mask"].is_floating_point():
            options["attn_mask"] = options["attn_mask"].to(dtype)
        expected = merged(layer, F.scaled_dot_product_attention(*projections(layer, x), **options))
        torch.testing.assert_close(got, expected, rtol=0, atol=atol)

    def test_gradients_are_those_of_scaled_dot_product_attention_also_for_silent_tokens(self):
        layer = SOFTMAX.layer(dtype=torch.float64, qkv_bias=False, **LIMIT)
        x = tokens(dtype=torch.float64)
        x[:, 3] = 0.0  # values of exactly zero, where a threshold has its kink
        x.requires_grad_()
        got = torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])
        attended = F.scaled_dot_product_attention(*projections(layer, x))
        expected = torch.autograd.grad(merged(layer, attended).square().sum(), [x, *layer.parameters()])
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("case", DICTIONARIES[:3], ids=case_id)
    def test_is_kernel_attention_over_templates(self, case):
        for options in ({}, {"learned": "factor"}, {"dynamics": "lca", "threshold": "gelu"}):
            layer = case.layer(dtype=torch.float64, **options).single_step_limit()
            x = tokens(dtype=torch.float64)
            _, _, v = projections(layer, x)
            phi = layer.problem(x)[1].templates
            torch.testing.assert_close(layer(x), merged(layer, phi @ phi.mT @ v), rtol=0, atol=1e-12)

    def test_keeps_a_learned_dictionary(self):
        layer = DYNAMIC.layer(learned="dictionary", dtype=torch.float64)
        nn.init.normal_(layer.learned.mixing)
        x, limit = tokens(dtype=torch.float64), layer.single_step_limit()
        phi = limit.problem(x)[1].inner.templates @ layer.learned.mixing
        torch.testing.assert_close(limit(x), merged(layer, phi @ phi.mT @ projections(layer, x)[2]), rtol=0, atol=1e-12)

    @every_dictionary
    def test_shares_parameters_and_nothing_else(self, case):
        layer, x = case.layer(attn_drop=0.1), tokens()
        before, settings = layer.eval()(x), repr(layer)
        layer.train()
        limit = layer.single_step_limit()
        assert isinstance(limit, VARSAttention)
        assert dict(limit.named_parameters()).keys() == dict(layer.named_parameters()).keys()
        for mine, theirs in zip(layer.parameters(), limit.parameters(), strict=True):
            assert mine is theirs
        for mine, theirs in zip(layer.buffers(), limit.buffers(), strict=True):
            assert mine is theirs

        limit.eval().register_forward_hook(lambda *_: pytest.fail("the hook of the limit ran on the original"))
        assert layer.attn_drop.training
        assert repr(layer) == settings
        torch.testing.assert_close(layer.eval()(x), before, rtol=0, atol=0)

    def test_updates_and_gradients_go_both_ways(self):
        layer, x = SOFTMAX.layer(), tokens()
        limit = layer.single_step_limit()
        before = limit(x)
        with torch.no_grad():
            layer.qkv.weight.add_(0.1)
        assert not torch.allclose(limit(x), before)
        layer(x).sum().backward()
        alone = layer.qkv.weight.grad.clone()
        limit(x).sum().backward()
        assert limit.qkv.weight.grad is layer.qkv.weight.grad
        assert not torch.allclose(layer.qkv.weight.grad, alone)

    def test_leaves_out_the_factor_that_plays_no_part(self):
        layer = DYNAMIC.layer(learned="factor")
        assert not any("learned" in name for name, _ in layer.single_step_limit().named_parameters())
        assert any("learned" in name for name, _ in layer.named_parameters())

    def test_more_than_one_step_refuses_masks_between_queries(self):
        x = tokens()
        for options in (
            {**LIMIT, "t1": 2.0},
            {**LIMIT, "initial": "feedforward"},
            {**LIMIT, "solver": "rk4"},
            {**LIMIT, "solver": "nesterov"},
            {**LIMIT, "solver": solvers.Euler(num_steps=2)},
            {**LIMIT, "solver": solvers.Euler(dt=0.5)},
        ):
            with pytest.raises(ValueError, match=r"has no symmetric Gram.*single_step_limit\(\)"):
                SOFTMAX.layer(**options)(x, is_causal=True)

    def test_every_single_step_takes_masks_between_queries(self):
        x = tokens()
        for options in (
            {**LIMIT, "solver": solvers.Euler(num_steps=1), "t1": 3.0},
            {**LIMIT, "solver": solvers.Euler(dt=4.0), "t1": 3.0},
            {**LIMIT, "sparsity": 0.2},
        ):
            assert SOFTMAX.layer(**options)(x, is_causal=True).shape == x.shape


class TestSolve:
    @every_dictionary
    @pytest.mark.parametrize("dynamics", ["proximal", "lca"])
    def test_shapes(self, case, dynamics):
        layer, x = case.layer(dynamics=dynamics), tokens()
        m = layer.problem(x)[0].drive.shape[-2]
        state = (2, HEADS, m, HEAD_DIM)
        for save_at, saved in ((None, 1), ("steps", 6), (torch.tensor([0.0, 1.0, 2.5]), 3)):
            solution = layer.solve(x, save_at=save_at)
            assert solution.ys.shape == (saved, *state)
            assert solution.ts.shape == (saved,)
            assert solution.y1.shape == state
            assert solution.status.shape == (2,)
            assert solution.success.all()

    @every_dictionary
    def test_output_is_the_read_out_of_the_solve(self, case):
        for dynamics in ("proximal", "lca"):
            layer, x = case.layer(dynamics=dynamics), tokens()
            args, read_out = layer.problem(x)
            expected = merged(layer, read_out(layer.field.code(layer.solve(x).y1, args)))
            torch.testing.assert_close(layer(x), expected)

    def test_field_and_initial_state_are_the_ones_asked_for(self):
        x = tokens()
        assert DYNAMIC.layer().field == ProximalFlow("soft")
        assert DYNAMIC.layer(dynamics="lca", threshold="gelu").field == LCA("gelu")
        start = DYNAMIC.layer().solve(x, "steps").ys[0]
        drive = DYNAMIC.layer().problem(x)[0].drive
        torch.testing.assert_close(start, drive.sign() * (drive.abs() - 0.3).clamp_min(0))
        assert (DYNAMIC.layer(initial="zero").solve(x, "steps").ys[0] == 0).all()

    @every_dictionary
    @pytest.mark.parametrize("dynamics", ["proximal", "lca"])
    def test_energy_and_residual_along_the_solve(self, case, dynamics):
        layer = case.layer(dynamics=dynamics, dtype=torch.float64, t1=30.0)
        x = tokens(dtype=torch.float64)
        energies, residuals = layer.energy(x), layer.kkt_residual(x)
        assert energies.shape == residuals.shape == (31, 2, HEADS)
        assert (energies.diff(dim=0) <= 1e-12).all()
        assert (residuals[-1] < residuals[0]).all()
        args, _ = layer.problem(x)
        code = layer.field.code(layer.solve(x).y1, args)
        torch.testing.assert_close(energies[-1], energy(code, args))
        torch.testing.assert_close(residuals[-1], kkt_residual(code, args))
        assert layer.energy(x, torch.tensor([0.0, 30.0])).shape == (2, 2, HEADS)

    def test_energy_and_solve_keep_their_precision_under_autocast(self):
        layer, x = DYNAMIC.layer(), tokens()
        with torch.autocast("cpu", torch.bfloat16):
            args, _ = layer.problem(x)
            states = layer.solve(x, "steps").ys
            energies = layer.energy(x)
        assert states.dtype == energies.dtype == torch.float32
        exact = torch.stack([energy(state.double(), type(args)(*(t.double() for t in args))) for state in states])
        torch.testing.assert_close(energies.double(), exact, rtol=1e-5, atol=1e-5)

    @every_dictionary
    def test_another_solver_is_another_accuracy_of_the_same_problem(self, case):
        features = 6 if case.fixed_size else None
        layer = case.layer(dtype=torch.float64, rate="power", num_features=features)
        x = 8 * tokens(1, count=6, dtype=torch.float64)
        saved = {key: value.clone() for key, value in layer.state_dict().items()}
        layer.solver = ACCURATE
        equilibrium, distances = layer(x), []
        for t1 in (1.0, 5.0, 25.0, 75.0):
            layer.t1, layer.solver = t1, "euler"
            distances.append((layer(x) - equilibrium).norm().item())
        assert distances == sorted(distances, reverse=True)
        assert distances[-1] < 0.5 * distances[0]
        for key, value in layer.state_dict().items():
            assert torch.equal(value, saved[key])

    @every_dictionary
    def test_solvers_agree_on_the_flow(self, case):
        layer, x = (
            case.layer(dtype=torch.float64, t1=3.0, solver=solvers.RK4(num_steps=60)),
            tokens(dtype=torch.float64),
        )
        exact = layer(x)
        errors = {}
        for solver in (solvers.Euler(num_steps=3), solvers.Euler(num_steps=24), solvers.Heun(num_steps=24)):
            layer.solver = solver
            errors[solver] = (layer(x) - exact).norm().item()
        coarse, fine, heun = errors.values()
        assert fine < 0.3 * coarse
        assert heun < 0.3 * fine

    @every_dictionary
    def test_one_equilibrium_for_all_dynamics_and_relaxations(self, case):
        x = 8 * tokens(1, count=6 if case is SOFTMAX else TOKENS, dtype=torch.float64)
        options = {"dtype": x.dtype, "sparsity": 4.0, "rate": "power", "num_features": 4 if case.fixed_size else None}
        outputs = [
            case.layer(dynamics=dynamics, solver=solver, **options)(x)
            for dynamics in ("proximal", "lca")
            for solver in (solvers.FixedPoint(max_steps=50_000, rtol=0.0, atol=1e-10), ACCURATE)
        ]
        for output in outputs[1:]:
            torch.testing.assert_close(output, outputs[0], rtol=0, atol=1e-7)

    def test_equilibrium_meets_the_optimality_conditions(self):
        layer = DYNAMIC.layer(dtype=torch.float64, solver=ACCURATE, rate="power")
        assert layer.kkt_residual(tokens(dtype=torch.float64), None).max() < 1e-8

    def test_horizons_without_end(self):
        x = tokens()
        equilibrium = DYNAMIC.layer(t1=math.inf, solver="nesterov", rate="power")(x)
        torch.testing.assert_close(DYNAMIC.layer(t1=2.0, solver="nesterov", rate="power")(x), equilibrium)
        watched = DYNAMIC.layer(t1=math.inf, until=solvers.SteadyState(rtol=1e-4), rate="power")
        assert (watched.solve(x).status == solvers.Status.STEADY_STATE).all()
        assert (watched(x) - equilibrium).abs().max() < 0.05 * equilibrium.abs().max()
        with pytest.raises(ValueError, match=r"t1=inf asks for the equilibrium.*'nesterov', or until="):
            DYNAMIC.layer(t1=math.inf)
        with pytest.raises(ValueError, match="t1=inf"):
            watched.until = None
        layer = DYNAMIC.layer(t1=math.inf, solver="nesterov")
        with pytest.raises(ValueError, match="t1=inf"):
            layer.solver = "euler"
        assert layer.solver == solvers.Nesterov(), "a refused assignment must leave the layer as it was"

    def test_settings_can_be_changed_on_a_living_layer_and_are_checked(self):
        layer = DYNAMIC.layer()
        layer.solver, layer.adjoint, layer.t1, layer.sparsity = solvers.RK4(num_steps=3), "checkpointed", 2, 0.1
        assert (layer.solver, layer.adjoint) == (solvers.RK4(num_steps=3), solvers.Checkpointed())
        assert (layer.t1, layer.sparsity, layer.until) == (2, 0.1, None)
        assert torch.equal(layer.problem(tokens())[0].sparsity, torch.tensor(0.1))
        for name, value in (("solver", "rk5"), ("adjoint", "x"), ("t1", 0), ("sparsity", -0.1), ("until", 1e-3)):
            with pytest.raises(ValueError):
                setattr(layer, name, value)
        assert layer.t1 == 2


class TestAttentionMap:
    def test_is_the_attention_matrix_in_the_limit(self):
        layer, x = SOFTMAX.layer(dtype=torch.float64, **LIMIT), tokens(dtype=torch.float64)
        q, k, _ = projections(layer, x)
        scores = q @ k.mT / math.sqrt(HEAD_DIM)
        torch.testing.assert_close(layer.attention_map(x), scores.softmax(-1), rtol=0, atol=1e-12)
        causal = scores.masked_fill(torch.ones(TOKENS, TOKENS).tril() == 0, -math.inf)
        torch.testing.assert_close(layer.attention_map(x, is_causal=True), causal.softmax(-1), rtol=0, atol=1e-12)

    @every_dictionary
    @pytest.mark.parametrize("dynamics", ["proximal", "lca"])
    def test_is_the_derivative_of_the_output_by_the_values(self, case, dynamics):
        learned = "factor" if case.fixed_size else False
        layer = case.layer(dtype=torch.float64, dynamics=dynamics, learned=learned)
        x, mask, step = tokens(dtype=torch.float64), key_mask(9), 1e-6
        got = layer.attention_map(x, attn_mask=mask)
        assert got.shape == (2, HEADS, TOKENS, TOKENS)
        layer.proj = nn.Identity()
        columns = []
        for token in range(TOKENS):  # all channels of one value token at once; the derivative averages over them
            outputs = []
            for sign in (1, -1):

                def nudge(module, inputs, out, token=token, sign=sign):
                    out = out.clone()
                    out[:, token, -DIM:] += sign * step
                    return out

                hook = layer.qkv.register_forward_hook(nudge)
                outputs.append(layer(x, attn_mask=mask).unflatten(-1, (HEADS, HEAD_DIM)).sum(-1))
                hook.remove()
            columns.append((outputs[0] - outputs[1]) / (2 * step * HEAD_DIM))
        expected = torch.stack(columns, -1).transpose(1, 2)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
        assert (got[..., 9:] == 0).all(), "masked tokens have no say"

    def test_leaves_no_trace(self):
        layer, x = DYNAMIC.layer(), tokens()
        expected = layer.attention_map(x)
        assert not expected.requires_grad
        assert all(p.grad is None for p in layer.parameters())
        with torch.no_grad():
            torch.testing.assert_close(layer.attention_map(x), expected)
        with torch.inference_mode():
            torch.testing.assert_close(layer.attention_map(tokens()), expected)


class TestInputs:
    @every_dictionary
    @pytest.mark.parametrize("batch", [0, 1, 3])
    def test_batch_sizes(self, case, batch):
        layer, x = case.layer(), tokens(3)[:batch]
        out = layer(x)
        assert out.shape == (batch, TOKENS, DIM)
        if batch == 1:
            torch.testing.assert_close(out, layer(tokens(3))[:1])

    @every_dictionary
    def test_one_token(self, case):
        """Softmax over one key is one; templates of one token are all ones."""
        layer, x = case.layer(**LIMIT, dtype=torch.float64), tokens(count=1, dtype=torch.float64)
        value = projections(layer, x)[2]
        args, read_out = layer.problem(x)
        if case is SOFTMAX:
            torch.testing.assert_close(layer(x), merged(layer, value))
        else:
            assert args.gram.abs().sub(1).abs().max() < 1e-12
            torch.testing.assert_close(read_out(args.drive), args.gram.shape[-1] * value)

    @every_dictionary
    def test_memory_layout_does_not_matter(self, case):
        layer, x = case.layer(), tokens(4)
        expected = layer(x)
        strided = torch.zeros(4, TOKENS, 2 * DIM)[..., ::2].copy_(x)
        expanded = x[:1].expand(4, -1, -1)
        for y in (x.transpose(0, 1).contiguous().transpose(0, 1), x.mT.contiguous().mT, strided):
            assert not y.is_contiguous()
            torch.testing.assert_close(layer(y), expected)
        torch.testing.assert_close(layer(expanded), expected[:1].expand_as(expected))
        x.requires_grad_()
        layer(x.transpose(1, 2).contiguous().transpose(1, 2)).sum().backward()
        assert x.grad.isfinite().all()

    @pytest.mark.parametrize("case", [DYNAMIC, ORTHOGONAL, SOFTMAX], ids=case_id)
    def test_permuting_tokens_permutes_the_output(self, case):
        order = torch.randperm(TOKENS)
        for options in ({}, {"dynamics": "lca", "rate": "power"}, {"solver": "nesterov", "sparsity": 1.0}):
            layer, x = case.layer(dtype=torch.float64, **options), tokens(dtype=torch.float64)
            torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order], rtol=0, atol=1e-10)

    def test_static_templates_depend_on_the_position(self):
        layer, x, order = STATIC.layer(), tokens(), torch.arange(TOKENS).flip(0)
        assert not torch.allclose(layer(x[:, order]), layer(x)[:, order], atol=1e-3)

    @every_dictionary
    def test_bfloat16_autocast_solves_in_float32(self, case):
        layer, x = case.layer(), tokens()
        with torch.autocast("cpu", torch.bfloat16):
            low = layer(x)
        assert low.dtype == torch.bfloat16
        full = layer(x)
        assert (low.float() - full).abs().max() < 0.03 * full.abs().max()
        with torch.autocast("cpu", torch.bfloat16):
            layer(x).float().square().sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())

    @every_dictionary
    @pytest.mark.parametrize("learned", [False, *LEARNED_FORMS])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_layers_in_half_precision(self, case, learned, dtype):
        if learned and not case.fixed_size:
            return
        layer, x = case.layer(learned=learned), tokens()
        full = layer(x)
        low = layer.to(dtype)(x.to(dtype))
        assert low.dtype == dtype
        assert layer.solve(x.to(dtype)).y1.dtype == torch.float32
        assert (low.float() - full).abs().max() < 0.1 * full.abs().max()
        low.float().sum().backward()
        assert layer.qkv.weight.grad.dtype == dtype

    @every_dictionary
    def test_double_precision_refines_single(self, case):
        layer = case.layer()
        single = layer(tokens())
        double = layer.double()(tokens(dtype=torch.float64))
        assert double.dtype == torch.float64
        torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-5)

    @pytest.mark.filterwarnings("ignore::solvers.SolverWarning")
    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    @pytest.mark.parametrize("solver", ["euler", "rk4", "nesterov"])
    @every_dictionary
    def test_inputs_that_are_no_numbers(self, case, solver, bad):
        x = tokens(3)
        x[1, 2, 3] = bad
        with pytest.raises(ValueError, match="1 of 3 inputs hold NaN or infinite values"):
            case.layer(solver=solver)(x)

    def test_a_diverging_solve_is_not_blamed_on_the_input(self):
        layer = DYNAMIC.layer(rate=1e3, t1=60.0)
        with pytest.warns(solvers.SolverWarning, match="NONFINITE"):
            layer(tokens())

    @pytest.mark.parametrize(
        ("x", "got"),
        [
            (torch.zeros(TOKENS, DIM), r"\(12, 16\)"),
            (torch.zeros(2, TOKENS, DIM + 1), r"\(2, 12, 17\)"),
            (torch.zeros(2, 3, 4, DIM), r"\(2, 3, 4, 16\)"),
            (torch.zeros(2, 0, DIM), r"\(2, 0, 16\)"),
            (torch.zeros(2, TOKENS, DIM, dtype=torch.long), "torch.int64"),
        ],
    )
    def test_inputs_of_the_wrong_kind(self, x, got):
        layer = DYNAMIC.layer()
        for method in (layer, layer.solve, layer.energy, layer.attention_map, layer.problem):
            with pytest.raises(ValueError, match=rf"expected floating point tokens \(batch, tokens, 16\).*{got}"):
                method(x)

    @every_dictionary
    def test_batch_mates_do_not_matter(self, case):
        until = solvers.SteadyState(rtol=1e-2)
        for options in ({}, {"solver": "nesterov", "until": until}, {"solver": "fixed_point", "until": until}):
            layer, x = case.layer(**options), tokens(3)
            x[2] *= 10
            torch.testing.assert_close(layer(x)[:1], layer(x[:1]), rtol=0, atol=1e-5)


LEARNED = [(case, learned) for case in DICTIONARIES for learned in (False, *LEARNED_FORMS)]
LEARNED = [(case, learned) for case, learned in LEARNED if case.fixed_size or not learned]


@pytest.mark.parametrize(("case", "learned"), LEARNED, ids=case_id)
@pytest.mark.parametrize("dynamics", ["proximal", "lca"])
@pytest.mark.parametrize("adjoint", ["direct", "checkpointed"])
def test_gradients_of_the_whole_layer(case, learned, dynamics, adjoint):
    """Against finite differences, with a rate given as a number: computed ones carry no gradient by design."""
    choice = StaticDynamic(grid=(2, 2)) if case is STATIC else case.choice
    features = 3 if case.fixed_size else None
    torch.manual_seed(1)
    layer = VARSAttention(
        4, 2, dictionary=choice, num_features=features, learned=learned, dynamics=dynamics, adjoint=adjoint,
        sparsity=0.1, rate=0.2, t1=3.0, qkv_bias=True, dtype=torch.float64,
    )  # fmt: skip
    names, parameters = zip(*layer.named_parameters(), strict=True)
    x = torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True)

    def output(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), x)

    assert torch.autograd.gradcheck(output, (x, *parameters), fast_mode=True, atol=1e-6)


class TestCompiled:
    @pytest.mark.parametrize(
        ("case", "solver"),
        [
            (DYNAMIC, solvers.RK4(num_steps=1)),
            (STATIC, solvers.Euler(num_steps=2)),
            (SOFTMAX, solvers.Heun(num_steps=1)),
        ],
        ids=case_id,
    )
    def test_layer_is_one_graph_with_the_same_numbers(self, case, solver):
        torch.compiler.reset()
        layer = case.layer(solver=solver, learned="factor" if case.fixed_size else False)
        counter = CompileCounterWithBackend("eager")
        compiled = torch.compile(layer, fullgraph=True, backend=counter)
        for batch in (2, 3, 5):
            x = tokens(batch).requires_grad_()
            out, expected = compiled(x), layer(x)
            torch.testing.assert_close(out, expected)
            got = torch.autograd.grad(out.square().sum(), x)
            torch.testing.assert_close(got, torch.autograd.grad(expected.square().sum(), x))
        assert counter.frame_count <= 2, "one recompilation at most, for batch sizes that vary"

    def test_masked(self):
        torch.compiler.reset()
        layer, x = DYNAMIC.layer(t1=1.0), tokens()
        compiled = torch.compile(layer, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x, attn_mask=key_mask(7)), layer(x, attn_mask=key_mask(7)))
        limit = SOFTMAX.layer().single_step_limit()
        compiled = torch.compile(limit, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x, is_causal=True), limit(x, is_causal=True))

    @pytest.mark.parametrize("case", [DYNAMIC, STATIC, SOFTMAX], ids=case_id)
    def test_export(self, case):
        layer, x = case.layer(t1=1.0), tokens()
        torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))


class TestDropout:
    @every_dictionary
    @pytest.mark.parametrize("kind", ["attn_drop", "proj_drop"])
    def test_only_in_training_and_by_seed(self, case, kind):
        layer, x = case.layer(**{kind: 0.3}), tokens()
        plain = case.layer()(x)
        torch.testing.assert_close(layer.eval()(x), plain, rtol=0, atol=0)
        layer.train()
        torch.manual_seed(4)
        first, second = layer(x), layer(x)
        torch.manual_seed(4)
        assert torch.equal(layer(x), first)
        assert not torch.allclose(first, second)
        assert not torch.allclose(first, plain)

    def test_keeps_the_mean(self):
        layer, x = SOFTMAX.layer(attn_drop=0.3, **LIMIT), tokens(1)
        with torch.no_grad():
            mean = layer(x.expand(3000, -1, -1)).mean(0, keepdim=True)
            torch.testing.assert_close(mean, layer.eval()(x), rtol=0, atol=0.03)

    def test_without_dropout_training_changes_nothing(self):
        layer, x = DYNAMIC.layer(), tokens()
        assert torch.equal(layer.train()(x), layer.eval()(x))


class TestCopies:
    def roundtrips(self, layer):
        buffer = io.BytesIO()
        torch.save(layer, buffer)
        buffer.seek(0)
        return copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(buffer, weights_only=False)

    @every_dictionary
    def test_plain_and_configured_layers(self, case):
        options = {"dictionary": case.choice, "solver": solvers.RK4(num_steps=3), "sparsity": 0.1, "t1": 2.0}
        configured = VARSAttention.configured(**options)(DIM, HEADS)
        configured.t1 = 4.0
        for layer in (case.layer(**options), configured):
            for copied in self.roundtrips(layer):
                assert repr(copied) == repr(layer)
                assert torch.equal(copied(tokens()), layer(tokens()))
                assert not {id(p) for p in layer.parameters()} & {id(p) for p in copied.parameters()}

    def test_a_deep_copy_is_of_the_same_class(self):
        layer = VARSAttention.configured(t1=2.0)(DIM)
        assert type(copy.deepcopy(layer)) is type(layer)
        assert type(layer.single_step_limit()) is type(layer)

    def test_state_dict_knows_no_solver(self):
        keys = set(DYNAMIC.layer().state_dict())
        for options in ({"solver": "rk4"}, {"adjoint": "checkpointed"}, {"t1": 9.0}, {"dynamics": "lca"}):
            assert set(DYNAMIC.layer(**options).state_dict()) == keys


class OwnAttention(VARSAttention.configured(sparsity=0.2)):
    """What a user may derive from a configured class."""


class TestConfigured:
    def test_is_a_subclass_with_other_defaults(self):
        cls = VARSAttention.configured(dictionary="softmax", sparsity=0.2, num_heads=4)
        assert issubclass(cls, VARSAttention)
        layer = cls(DIM)
        assert (layer.num_heads, layer.sparsity, layer.dictionary.tied) == (4, 0.2, False)
        assert cls(DIM, sparsity=0.5).sparsity == 0.5
        assert VARSAttention(DIM).sparsity == 0.3

    def test_nests(self):
        cls = VARSAttention.configured(sparsity=0.2, t1=3.0).configured(t1=4.0, solver="rk4")
        layer = cls(DIM)
        assert (layer.sparsity, layer.t1, layer.solver) == (0.2, 4.0, solvers.RK4())
        copied = pickle.loads(pickle.dumps(layer))
        assert repr(copied) == repr(layer)
        assert (type(copied)(DIM).sparsity, type(copied)(DIM).t1) == (0.2, 4.0)

    @pytest.mark.parametrize("name", ["sparsityy", "dim", "self", "depth"])
    def test_unknown_options(self, name):
        with pytest.raises(ValueError, match=rf"no option '{name}'; valid options: num_heads, .*until"):
            VARSAttention.configured(**{name: 1})

    def test_a_subclass_of_it_keeps_its_own_name(self):
        layer = pickle.loads(pickle.dumps(OwnAttention(DIM)))
        assert type(layer) is OwnAttention
        assert (layer.sparsity, OwnAttention.configured(t1=2.0)(DIM).sparsity) == (0.2, 0.2)
        assert issubclass(OwnAttention.configured(t1=2.0), OwnAttention)

    def test_copies_of_options_are_not_shared(self):
        options = {"sparsity": 0.2}
        cls = VARSAttention.configured(**options)
        options["sparsity"] = 0.9
        assert cls(DIM).sparsity == 0.2


class TestContract:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"dim": 15}, "dim=15 is not a multiple of num_heads=2; change one of them, or give attn_head_dim"),
            ({"dim": 0}, "dim must be a whole number of at least 1, got 0"),
            ({"num_heads": 0}, "num_heads must be a whole number"),
            ({"num_heads": 2.0}, "num_heads must be a whole number of at least 1, got 2.0"),
            ({"attn_head_dim": 0}, "attn_head_dim must be"),
            ({"qk_norm": True}, "qk_norm and scale_norm need norm_layer, such as norm_layer=torch.nn.LayerNorm"),
            ({"scale_norm": True}, "need norm_layer"),
            ({"dictionary": "fourier"}, "unknown dictionary 'fourier'.*choose one of dynamic, static.dynamic, softmax"),
            ({"dictionary": 3}, "expected the name of a dictionary or a Dictionary object, got 3"),
            ({"num_features": 0}, "num_features must be a whole number of at least 1, got 0"),
            ({"num_features": 2.5}, "num_features must be"),
            ({"sparsity": -0.1}, "sparsity must be a finite number of at least 0, got -0.1"),
            ({"sparsity": math.nan}, "sparsity must be"),
            ({"sparsity": "0.3"}, "sparsity must be"),
            ({"threshold": "hard"}, "unknown threshold 'hard'; choose one of soft, gelu"),
            ({"dynamics": "hopfield"}, "unknown dynamics 'hopfield'; choose one of proximal, lca"),
            ({"rate": 0}, "rate must be a finite number above 0, got 0"),
            ({"rate": -1.0}, "rate must be"),
            ({"rate": math.inf}, "rate must be"),
            ({"rate": "newton"}, "unknown rate 'newton'; choose one of gershgorin, power, or give a number"),
            ({"rate": None}, "rate must be"),
            ({"initial": "random"}, "unknown initial state 'random'; choose one of feedforward, zero"),
            ({"t1": 0.0}, "t1, the horizon of the solve, must be a number above 0, got 0.0"),
            ({"t1": -1.0}, "t1, the horizon"),
            ({"t1": math.nan}, "t1, the horizon"),
            ({"t1": "5"}, "t1, the horizon"),
            ({"t1": True}, "t1, the horizon"),
            ({"solver": "rk5"}, "unknown solver 'rk5' .did you mean 'rk4'"),
            ({"solver": 4}, "expected the name of a solver"),
            ({"solver": solvers.Euler}, "expected the name of a solver or a Solver object"),
            ({"adjoint": "bptt"}, "unknown adjoint 'bptt'.*choose one of direct, checkpointed"),
            ({"until": 1e-3}, r"until must be a solvers.SteadyState\(rtol, atol\) or None, got 0.001"),
        ],
    )
    def test_options_that_state_no_layer(self, options, message):
        with pytest.raises(ValueError, match=message):
            VARSAttention(**{"dim": DIM, "num_heads": HEADS, **options})

    @pytest.mark.parametrize("make", [lambda: solvers.Euler(num_steps=0), lambda: solvers.get("rk4", num_steps=0)])
    def test_zero_steps(self, make):
        with pytest.raises(ValueError, match="num_steps must be a whole number of at least 1, got 0"):
            make()

    def test_attn_head_dim_and_dim_out(self):
        layer = VARSAttention(15, 2, attn_head_dim=4, dim_out=7, dictionary="softmax", qkv_bias=True)
        assert layer(torch.randn(2, 5, 15)).shape == (2, 5, 7)
        assert layer.qkv.out_features == 24
        assert layer.solve(torch.randn(2, 5, 15)).y1.shape == (2, 2, 5, 4)

    @pytest.mark.parametrize("qkv_bias", [False, True])
    @pytest.mark.parametrize("proj_bias", [False, True])
    def test_biases(self, qkv_bias, proj_bias):
        layer = DYNAMIC.layer(qkv_bias=qkv_bias, proj_bias=proj_bias)
        assert (layer.qkv.bias is not None, layer.proj.bias is not None) == (qkv_bias, proj_bias)

    def test_tied_layers_normalise_their_queries_once(self):
        layer = DYNAMIC.layer(qk_norm=True, norm_layer=nn.LayerNorm)
        assert isinstance(layer.q_norm, nn.LayerNorm)
        assert isinstance(layer.k_norm, nn.Identity)
        layer(tokens()).square().sum().backward()
        assert layer.q_norm.weight.grad.abs().max() > 0

    def test_meta_device(self):
        layer = VARSAttention(DIM, HEADS, dictionary=StaticDynamic(grid=GRID), learned="factor", device="meta")
        assert all(t.is_meta for t in itertools.chain(layer.parameters(), layer.buffers()))

    def test_repr_tells_the_problem_and_the_solver(self):
        text = repr(DYNAMIC.layer(solver="rk4", sparsity=0.25))
        for part in ("sparsity=0.25", "solver=RK4(", "rate='power'", "t1=5.0", "ProximalFlow", "adjoint=Direct"):
            assert re.search(re.escape(part), text), part
