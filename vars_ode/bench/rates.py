"""What the step bounds cost beside a layer's forward pass, and how tight they are."""

from dataclasses import dataclass
from functools import partial

import torch

from vars_ode.attention import VARSAttention
from vars_ode.measuring import interleaved
from vars_ode.rates import RATES


@dataclass(frozen=True)
class RatesRow:
    """One dictionary: a layer's forward pass with each step bound in milliseconds, and L / |G|_2 at its worst."""

    dictionary: str
    gershgorin_ms: float
    power_ms: float
    power_over_gershgorin: float
    gershgorin_bound: float
    power_bound: float


def rates(repeats: int = 40) -> list[RatesRow]:
    """VARS-D and VARS-SD on 8 x 196 tokens, 192 wide, 6 heads, 64 features, five Euler steps; without gradients."""
    torch.manual_seed(0)
    x = torch.randn(8, 196, 192)
    return [_row(dictionary, x, repeats) for dictionary in ("dynamic", "static+dynamic")]


@torch.no_grad()
def _row(dictionary: str, x: torch.Tensor, repeats: int) -> RatesRow:
    layer = VARSAttention(192, 6, num_features=64, dictionary=dictionary)

    def forward(rate: str) -> None:
        layer.rate = rate
        layer(x)

    names = ("gershgorin", "power")
    times = interleaved([partial(forward, name) for name in names], x.device, repeats)
    gram = layer.problem(x)[0].dense_gram
    norm = torch.linalg.matrix_norm(gram, 2)
    bounds = [float((1 / RATES[name](gram)[..., 0, 0] / norm).max()) for name in names]
    return RatesRow(dictionary, times[0], times[1], times[1] / times[0], bounds[0], bounds[1])
