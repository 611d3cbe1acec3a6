"""Whatever a layer is built with and given: a finite answer, a warning, or a sentence."""

import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from outcomes import drawn, outcome
from torch import Tensor, nn

import solvers
from vars_ode import (
    Dynamic,
    PerformerAttention,
    Softmax,
    StaticDynamic,
    VARSAttention,
    VARSConvAttention,
    VARSRotaryAttention,
)

FLOATS = st.sampled_from([torch.float32] * 4 + [torch.float64, torch.float16, torch.bfloat16])
SHORT = {"max_steps": 30}  # enough for an equilibrium with a ridge, and for a warning without
SOLVERS = [
    *["euler"] * 3,
    *[solvers.get(name) for name in solvers.available() if not hasattr(solvers.get(name), "max_steps")],
    *[solvers.get(name, max_steps=300) for name in solvers.available() if hasattr(solvers.get(name), "max_steps")],
    solvers.Euler(num_steps=2),
    solvers.RK4(dt=10.0),
    solvers.Heun(num_steps=3),
    solvers.Dopri5(rtol=1e-2, atol=1e-2, **SHORT),
    solvers.Tsit5(rtol=1e-9, atol=1e-12, **SHORT),
    solvers.Scipy(rtol=1e-3, **SHORT),
    solvers.FixedPoint(**SHORT),
    solvers.Nesterov(rtol=0, atol=0, max_steps=5),
    solvers.Anderson(memory=2, **SHORT),
    solvers.DouglasRachford(rho=0.5, **SHORT),
]
RULES = [solvers.SteadyState(rtol=1e-2), solvers.SteadyState(rtol=1e9), solvers.SteadyState(max_steps=3)]
OPTIONS: dict[str, list[Any]] = {
    "qkv_bias": [False, True],
    "proj_bias": [True, False],
    "gated": [False, True],
    "attn_drop": [0.0, 0.5, 1.0],
    "proj_drop": [0.0, 0.5],
    "normalize_queries": [True, False],
    "num_features": [None, 1, 5],
    "sparsity": [0.3, 0.0, 1e6, 1e38],
    "threshold": ["soft", "gelu"],
    "dynamics": ["proximal", "lca"],
    "rate": ["power", "gershgorin", 1.0, 0.1, 1e-30, 1e10],
    "initial": ["feedforward", "zero"],
    "learned": [False, "factor", "coupling", "monotone", "dictionary"],
    "ridge": [0.0, 0.05, 1.0, 1e10],
    "t1": [5.0, 1.0, 0.3, 1e-9, 2, math.inf, 1e39, 1e300],
    "solver": SOLVERS,
    "adjoint": ["direct", "direct", *solvers.adjoints.available(), solvers.Truncated(3)],
    "until": RULES,
}
REFUSED: dict[str, list[Any]] = {
    "num_features": [0, 2.5, "x"],
    "sparsity": [-1.0, math.nan, "x"],
    "threshold": ["hard", None],
    "dynamics": ["x", 1],
    "rate": [0.0, "fast", math.nan],
    "initial": ["random"],
    "learned": ["x", True],
    "ridge": [-1.0, math.inf],
    "t1": [0.0, -1.0, math.nan, "5", True],
    "solver": ["rk5", None, 5],
    "adjoint": ["x", None],
    "until": [1.0, "steady"],
    "dictionary": ["x", None],
    "num_heads": [0, -1, 2.0],
}
DICTIONARIES = [
    "dynamic",
    "static+dynamic",
    "softmax",
    Dynamic(orthogonal=True),
    StaticDynamic(grid=(2, 3)),
    StaticDynamic(grid=(1, 1), num_prefix_tokens=1),
    Softmax(),
]
_OF_TEMPLATES = ("num_features", "normalize_queries", "learned")  # which the softmax dictionary has no use for
SCALES = st.sampled_from([1.0] * 5 + [0.0, 1e-30, 1e-3, 100.0, 1e4, 1e20, 1e30, 3e38])
KINDS = ["attention"] * 8 + ["rotary", "convolutional", "performer"]
AUTOCAST = st.sampled_from([None] * 5 + [torch.bfloat16, torch.float16])  # meant for weights in float32
CLASSES: dict[str, Any] = {
    "attention": VARSAttention,
    "rotary": VARSRotaryAttention,
    "convolutional": VARSConvAttention,
    "performer": PerformerAttention,
}
CALLS = ["forward", "forward", "backward", "backward", "solve", "steps", "limit", "map", "energy", "residual"]


@st.composite
def layers(draw: Any) -> tuple[str, dict[str, Any]]:
    """(kind, arguments), about one option in four unusual."""
    kind = draw(st.sampled_from(KINDS))
    heads, width = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    dim = heads * width + (1 if draw(st.integers(0, 40)) == 0 else 0)
    options: dict[str, Any] = {}
    for name, values in OPTIONS.items():
        if draw(st.integers(0, 3)) == 0:
            options[name] = draw(st.sampled_from(values))
    if draw(st.integers(0, 15)) == 0:
        name = draw(st.sampled_from(list(REFUSED)))
        options[name] = draw(st.sampled_from(REFUSED[name]))
    if kind == "convolutional":
        kept = ("sparsity", "threshold", "dynamics", "rate", "initial", "ridge", "t1", "solver", "adjoint", "until")
        grid = draw(st.sampled_from([(2, 2), (2, 3), (1, 1), (1, 4), (3, 3)] * 4 + [(0, 2), 3]))
        return kind, {"dim": dim, "grid": grid, **{name: options[name] for name in kept if name in options}}
    if kind == "performer":
        kept = ("qkv_bias", "proj_drop", "num_features", "normalize_queries")
        return kind, {"dim": dim, "num_heads": heads, **{name: options[name] for name in kept if name in options}}
    options = {"num_heads": heads, "dictionary": draw(st.sampled_from(DICTIONARIES)), **options}
    if options["dictionary"] in ("softmax", Softmax()) and draw(st.integers(0, 9)):
        options = {name: value for name, value in options.items() if name not in _OF_TEMPLATES}
    if draw(st.integers(0, 5)) == 0:
        options |= (
            {"scale_norm": False, "norm_layer": nn.LayerNorm}
            if kind == "rotary"
            else {"qk_norm": draw(st.booleans()), "scale_norm": draw(st.booleans()), "norm_layer": nn.LayerNorm}
        )
    if draw(st.integers(0, 8)) == 0:
        options["attn_head_dim"] = draw(st.sampled_from([1, 5, 0, None]))
    return kind, {"dim": dim, **options}


@st.composite
def masks(draw: Any) -> tuple[str, int]:
    kinds = (
        ["none"] * 12
        + ["keys", "bias", "far", "all"] * 2
        + ["pairs", "causal", "shape", "whole numbers", "nan", "list"]
    )
    return draw(st.sampled_from(kinds)), draw(st.integers(0, 99))


def mask_of(kind: str, seed: int, batch: int, tokens: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(batch, 1, 1, tokens, generator=generator)
    return {
        "keys": chosen < 0.6,
        "bias": chosen.log(),
        "far": torch.where(chosen < 0.6, 0.0, -1e30),
        "all": torch.zeros(batch, 1, 1, tokens, dtype=torch.bool),
        "pairs": torch.rand(tokens, tokens, generator=generator) < 0.6,
        "shape": torch.ones(batch, tokens + 1, dtype=torch.bool),
        "whole numbers": torch.ones(tokens, tokens, dtype=torch.long),
        "nan": torch.full((1, 1, 1, tokens), math.nan),
        "list": [[True]],
    }.get(kind)


@st.composite
def calls(draw: Any) -> dict[str, Any]:
    """A layer and what it is called with: mostly sensible, each part now and then not."""
    kind, options = draw(layers())
    dtype = draw(FLOATS)
    batch, tokens = draw(st.integers(0, 3)), draw(st.sampled_from([1, 2, 4, 5, 6, 7, 9, 10, 26, 0]))
    shape: tuple[int, ...] = (batch, tokens, options["dim"])
    odd = draw(
        st.sampled_from([None] * 60 + ["flat", "axis", "wide", "whole numbers", "complex", "other type", "list"])
    )
    shape = {"flat": shape[1:], "axis": (1, *shape), "wide": (*shape[:2], shape[2] + 1)}.get(odd, shape)
    return {
        "kind": kind,
        "options": options,
        "dtype": dtype,
        "shape": shape,
        "odd": odd,
        "scale": draw(SCALES),
        "special": draw(st.sampled_from([None] * 20 + [math.nan, math.inf, -math.inf])),
        "weights": draw(st.sampled_from([1.0] * 10 + [0.0, 100.0, 1e20, math.nan])),
        "seed": draw(st.integers(0, 99)),
        "mask": draw(masks()),
        "call": draw(st.sampled_from(CALLS)),
        "training": draw(st.booleans()),
        "autocast": draw(AUTOCAST) if dtype == torch.float32 else None,
        "gradients": draw(st.booleans()),
        "grid": draw(st.sampled_from([None] * 30 + [(2, 2), (1, 5), (0, 4), "2x2"])),
    }


def make(call: dict[str, Any]) -> nn.Module:
    torch.manual_seed(call["seed"])
    layer: nn.Module = CLASSES[call["kind"]](**call["options"]).to(call["dtype"]).train(call["training"])
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(call["weights"])
    return layer


def tokens_of(call: dict[str, Any]) -> Any:
    x = call["scale"] * torch.randn(call["shape"], generator=torch.Generator().manual_seed(call["seed"]))
    if call["special"] is not None and x.numel():
        x.view(-1)[-1] = call["special"]
    x = x.to(call["dtype"])
    narrow = torch.float64 if call["dtype"] != torch.float64 else torch.float32
    changed = {"whole numbers": torch.long, "complex": torch.complex64, "other type": narrow}
    if call["odd"] in changed:
        return x.nan_to_num(0, 0, 0).clamp(-1e4, 1e4).to(changed[call["odd"]])
    return x.tolist() if call["odd"] == "list" else x


def run(call: dict[str, Any]) -> list[Tensor]:
    """The tensors that a call gives, the last of them the output where there is one."""
    recorded = call["gradients"] or call["call"] == "backward"
    with (
        torch.set_grad_enabled(recorded),
        torch.autocast("cpu", call["autocast"], enabled=call["autocast"] is not None),
    ):
        return _run(call)


def _run(call: dict[str, Any]) -> list[Tensor]:
    layer, x = make(call), tokens_of(call)
    kind, seed = call["mask"]
    context: dict[str, Any] = {}
    mask = mask_of(kind, seed, call["shape"][0], call["shape"][-2])
    context |= {} if mask is None else {"attn_mask": mask}
    context |= {"is_causal": True} if kind == "causal" else {}
    if call["kind"] != "performer":
        context |= {} if call["grid"] is None else {"grid": call["grid"]}
    what = call["call"] if call["kind"] in ("attention", "rotary") or call["call"] == "backward" else "forward"
    if what == "forward":
        return [layer(x, **context)]
    if what == "limit":
        return [layer.single_step_limit()(x, **context)]
    if what == "backward":
        x = x.requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x
        output = layer(x, **context)
        output.sum().backward()
        return [output]
    if what in ("solve", "steps"):
        solution = layer.solve(x, save_at="steps" if what == "steps" else None, **context)
        return [solution.ys[:, solution.success], solution.y1[solution.success]]
    method = {"map": layer.attention_map, "energy": layer.energy, "residual": layer.kkt_residual}[what]
    return [method(x, **context)]


def check(call: dict[str, Any], results: list[Tensor], warned: bool) -> None:
    for result in results:
        assert warned or result.isfinite().all(), f"silent: {result}"
    if call["call"] in ("forward", "backward", "limit"):
        assert results[-1].shape == call["shape"]
        assert call["autocast"] or results[-1].dtype == call["dtype"]


@drawn(1000)
@given(call=calls())
def test_hostile_calls(call: dict[str, Any]) -> None:
    results, warned, refusal = outcome(lambda: run(call))
    if refusal is None:
        check(call, results, warned)


@pytest.mark.parametrize("kind", ["attention", "performer", "rotary"])
def test_what_is_no_tokens_is_refused(kind: str) -> None:
    layers = {
        "attention": VARSAttention(8, 2),
        "performer": PerformerAttention(8, 2),
        "rotary": VARSRotaryAttention(8, 2),
    }
    layer = layers[kind]
    for x, message in (
        ([[1.0]], "expected tokens as a tensor .* got list"),
        (torch.ones(2, 3, 9), r"expected floating point tokens \(batch, tokens, 8\)"),
        (torch.ones(2, 0, 8), "at least one token"),
        (torch.ones(2, 3, 8).double(), "tokens are torch.float64 and the weights of the layer torch.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.ones(2, 3, 8).bfloat16()).isfinite().all()


def test_an_energy_beyond_its_type_is_warned_of() -> None:
    with pytest.warns(solvers.SolverWarning, match=r"residual or attention map of the solve outgrew torch\.float32"):
        VARSAttention(8, 2).energy(1e25 * torch.randn(2, 5, 8))


def test_a_map_under_autocast_is_made_in_float32() -> None:
    layer = VARSAttention(6, 3, dictionary="softmax", solver="nesterov")
    x, mask = 100 * torch.randn(3, 5, 6), torch.tensor([0.0, 0, -1e30, 0, 0])[None, None, None]
    with torch.autocast("cpu", torch.float16):
        assert layer.attention_map(x, attn_mask=mask).isfinite().all()


@pytest.mark.parametrize("solver", [name for name in solvers.available() if name != "exponential_euler"])
def test_no_images_are_no_problem(solver: str) -> None:
    with torch.no_grad():
        assert VARSAttention(8, 2, solver=solver)(torch.ones(0, 5, 8)).shape == (0, 5, 8)


def test_the_judge_tells_what_is_raw() -> None:
    with pytest.raises(AssertionError, match="raw: RuntimeError"):
        outcome(lambda: torch.ones(2) @ torch.ones(3))
    with pytest.raises(AssertionError, match="raw: raised in"):
        outcome(lambda: math.sqrt(-1))
    assert outcome(lambda: solvers.get("rk5")).refusal is not None
