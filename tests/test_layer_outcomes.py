"""What a layer cannot give is a warning or one of our errors, never a silent infinity."""

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import solvers
from vars_ode import PerformerAttention, VARSAttention, VARSConvAttention

LAYERS = {
    "attention": lambda: VARSAttention(16, 2),
    "convolutional": lambda: VARSConvAttention(16, grid=(3, 3), dtype=torch.float64),
    "performer": lambda: PerformerAttention(16, 2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_an_output_beyond_the_type_is_warned_of(name: str) -> None:
    layer: nn.Module = LAYERS[name]().half()
    with torch.no_grad():
        layer.proj.bias.fill_(6e4)
        layer.proj.weight.fill_(6e4)
    with pytest.warns(solvers.SolverWarning, match=r"the outputs of 2 of 2 inputs .* outgrew torch.float16"):
        output = layer(100 * torch.randn(2, 9, 16).half())
    assert not output.isfinite().all()


def test_the_cast_of_the_output_is_warned_of(recwarn: pytest.WarningsRecorder) -> None:
    layer = VARSAttention(16, 2).half().single_step_limit()
    with torch.no_grad():
        layer.qkv.weight[16:] = 3e3  # values of 48,000, which the 16 templates of a head multiply
    layer(torch.ones(1, 9, 16).half())
    (warning,) = recwarn
    assert warning.category is solvers.SolverWarning
    assert "outgrew torch.float16" in str(warning.message)  # the solve itself, in float32, went well


def test_an_input_that_is_not_finite_is_blamed() -> None:
    layer = PerformerAttention(16, 2)
    x = torch.randn(3, 9, 16)
    x[1, 2, 3] = float("inf")
    with pytest.raises(ValueError, match="1 of 3 inputs hold NaN or infinite values"):
        layer(x)


@pytest.mark.parametrize("kind", ["boolean", "additive"])
@pytest.mark.parametrize("dictionary", ["dynamic", "static+dynamic"])
def test_the_output_of_masked_tokens_is_bounded(dictionary: str, kind: str) -> None:
    """Without normalised queries their templates may be any power of e larger than those of the others."""
    layer = VARSAttention(16, 2, dictionary=dictionary, normalize_queries=False)
    with torch.no_grad():
        layer.proj.weight.copy_(torch.eye(16))
        layer.proj.bias.zero_()
    x = 10 * torch.randn(8, 9, 16)
    mask = torch.arange(9) < 5
    mask = mask if kind == "boolean" else torch.where(mask, 0.0, -1e4)
    args, _ = layer.problem(x, attn_mask=mask[None, None, None])
    output = layer(x, attn_mask=mask[None, None, None])
    code = layer.solve(x, attn_mask=mask[None, None, None]).y1
    bound = code.abs().sum(-2).reshape(8, 1, 16)  # as the entries of the templates are at most 1
    assert (output.abs() <= 1.01 * bound + 1e-4).all()
    assert args.drive.isfinite().all()


def test_a_moderate_bias_leaves_the_read_out_as_it_is() -> None:
    layer = VARSAttention(16, 2, normalize_queries=False)
    x, bias = torch.randn(2, 9, 16), torch.linspace(-3, 0, 9)[None, None, None]
    read, write = layer.dictionary.templates(layer.queries_keys_values(x)[0], bias)
    torch.testing.assert_close(write, read * bias.transpose(-2, -1).exp())


@pytest.mark.parametrize("learned", ["factor", "coupling", "monotone", "dictionary"])
@pytest.mark.parametrize("solver", ["euler", "fixed_point", "tsit5"])
def test_learned_parameters_get_gradients_where_no_step_is_taken(learned: Any, solver: str) -> None:
    layer = VARSAttention(16, 2, learned=learned, solver=solver, until=solvers.SteadyState(rtol=1e9))
    layer(torch.randn(2, 9, 16)).sum().backward()
    assert [name for name, parameter in layer.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("solver", ["euler", "rk4", "tsit5"])
@pytest.mark.parametrize("t1", [1e39, 1e300])
def test_horizons_beyond_the_type_are_refused(t1: float, solver: str) -> None:
    layer = VARSAttention(16, 2, t1=t1, solver=solver)
    with pytest.raises(ValueError, match=r"is beyond what torch\.float32"):
        layer(torch.randn(2, 9, 16))


@pytest.mark.parametrize(("scale", "dtype"), [(1e30, torch.float32), (1e4, torch.float16)])
@pytest.mark.parametrize(
    "options", [{}, {"dictionary": "softmax"}, {"normalize_queries": False}, {"qkv_bias": True}], ids=str
)
def test_large_inputs_are_never_silently_lost(options: dict[str, Any], scale: float, dtype: torch.dtype) -> None:
    layer = VARSAttention(16, 2, **options).to(dtype)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        output = layer((scale * torch.randn(2, 9, 16)).to(dtype))
    assert output.isfinite().all() or any(w.category is solvers.SolverWarning for w in caught)
