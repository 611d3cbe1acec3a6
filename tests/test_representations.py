"""What is printed of objects that hold tensors: their shapes, never their numbers."""

import torch

from vars_ode import ReconstructionArgs, VARSAttention, VARSConvAttention, analysis
from vars_ode.analysis.problems import problem_of
from vars_ode.fields import FactoredGram
from vars_ode.robustness import Outcome


def test_tensors_are_shown_by_type_and_shape() -> None:
    args = ReconstructionArgs(torch.zeros(2, 3), FactoredGram(torch.zeros(3, 3)), torch.ones(()), torch.ones(1, 1))
    assert repr(args) == (
        "ReconstructionArgs(drive=float32[2, 3], gram=FactoredGram(matrix=float32[3, 3]), rate=float32[], "
        "sparsity=float32[1, 1])"
    )
    ones = torch.ones(5, dtype=torch.int64)
    expected = "Outcome(condition='clean', severity=0, indices=int64[5], labels=int64[5], predictions=int64[5])"
    assert repr(Outcome("clean", 0, ones, ones, ones)) == expected


def test_no_measurement_or_problem_prints_a_tensor() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(2, 16, 8)
    layer, filters = VARSAttention(8, num_heads=2), VARSConvAttention(8, num_heads=2)
    problem = problem_of(layer, tokens)
    found = [
        *(object_ for each in (layer, filters) for object_ in each.problem(tokens)),
        problem,
        analysis.find_equilibrium(problem),
        analysis.trace(layer, tokens),
        analysis.basin(layer, tokens),
        analysis.single_step_gap(layer, tokens),
        analysis.attention_maps(layer, tokens, times=(1.0, 2.0)),
    ]
    for each in found:
        assert "tensor(" not in repr(each), repr(each)[:200]
        assert len(repr(each)) < 1000, repr(each)[:200]
