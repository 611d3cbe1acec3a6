"""The reconstruction problem that the solver benchmarks share."""

import torch

from vars_ode.dictionaries import Dynamic, Shape
from vars_ode.fields import ReconstructionArgs
from vars_ode.rates import RATES


def reconstruction_args(
    batch: int = 4,
    tokens: int = 196,
    features: int = 64,
    head_dim: int = 32,
    sparsity: float = 0.3,
    value_scale: float = 1.0,
    rate: str = "gershgorin",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> ReconstructionArgs:
    """VARS-D on Gaussian queries and values: positive random features, whose Gram is ill-conditioned.

    Args:
        batch: problems; one head each.
        tokens, features, head_dim: N, m and d; by default those of a vision transformer on 14 x 14 patches.
        sparsity: lam.
        value_scale: standard deviation of the values; larger values take more iterations to a given KKT residual.
        rate: the step bound, by name.
    """
    torch.manual_seed(seed)
    templates = Dynamic().build(Shape(1, head_dim, features, normalize_queries=True)).to(dtype)
    q, v = torch.randn(2, batch, 1, tokens, head_dim, dtype=dtype)
    problem = templates(q, q, value_scale * v)
    return ReconstructionArgs(
        problem.drive, problem.gram, RATES[rate](problem.gram), torch.tensor(sparsity, dtype=dtype)
    )
