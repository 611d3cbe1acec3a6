"""The DETEST problems: Hull, Enright, Fellen & Sedgwick, Comparing numerical methods for ordinary differential
equations, SIAM J. Numer. Anal. 9 (1972). Five classes of five, on 0 <= x <= 20.

Each is a field f(x, y, args) of states (batch, n) with its initial values (n,).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

F64 = torch.float64
END = 20.0


@dataclass(frozen=True)
class Problem:
    """`rate(x, y)` maps a time and the components of y, (n, batch), to a sequence of n rates of shape (batch,)."""

    name: str
    rate: Callable[[Any, Tensor], Any]
    start: tuple[float, ...]

    def __str__(self) -> str:
        return self.name

    def __call__(self, x: Tensor, y: Tensor, args: Any = None) -> Tensor:
        rates = self.rate(x if x.ndim == 0 else x[:, 0], y.movedim(-1, 0))
        return rates.movedim(0, -1) if isinstance(rates, Tensor) else torch.stack([*rates], -1)

    @property
    def y0(self) -> Tensor:
        return torch.tensor(self.start, dtype=F64)[None]


def _chain(decay: Callable[[Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """Radioactive decay chain: member i becomes member i + 1 at the rate decay(i) y_i; the last one is stable."""

    def rate(x: Any, y: Tensor) -> Tensor:
        member = torch.arange(1, len(y), dtype=y.dtype)[:, None]
        flow = decay(member) * y[:-1]
        still = torch.zeros_like(y[:1])
        return torch.cat([still, flow]) - torch.cat([flow, still])

    return rate


def _diffusion(x: Any, y: Tensor) -> Tensor:
    """Second differences with zeros beyond both ends."""
    still = torch.zeros_like(y[:1])
    return torch.cat([still, y[:-1]]) - 2 * y + torch.cat([y[1:], still])


SUN = 1.00000597682
GRAVITY = 2.95912208286
MASSES = (0.954786104043e-3, 0.285583733151e-3, 0.437273164546e-4, 0.517759138449e-4, 0.277777777778e-5)
PLACES = (3.42947415189, 3.35386959711, 1.35494901715, 6.64145542550, 5.97156957878, 2.18231499728)
PLACES += (11.2630437207, 14.6952576794, 6.27960525067, -30.1552268759, 1.65699966404, 1.43785752721)
PLACES += (-21.1238353380, 28.4465098142, 15.3882659679)
SPEEDS = (-0.557160570446, 0.505696783289, 0.230578543901, -0.415570776342, 0.365682722812, 0.169143213293)
SPEEDS += (-0.325325669158, 0.189706021964, 0.0877265322780, -0.0240476254170, -0.287659532608, -0.117219543175)
SPEEDS += (-0.176860753121, -0.216393453025, -0.0148647893090)


def _planets(x: Any, y: Tensor) -> Tensor:
    """The five outer planets: r_j'' = -k (M + m_j) u_j + k sum_i m_i (d_ij / |d_ij|^3 - u_i) with u = r / |r|^3."""
    place = y[:15].view(5, 3, -1)
    mass = torch.tensor(MASSES, dtype=y.dtype)[:, None, None]
    pull = place / torch.linalg.vector_norm(place, dim=1, keepdim=True) ** 3
    between = place[None] - place[:, None]
    distance = torch.linalg.vector_norm(between, dim=2, keepdim=True)
    distance = torch.where(distance == 0, 1.0, distance)
    among = (mass * between / distance**3).sum(1) - (mass * pull).sum(0) + mass * pull  # a planet not on itself
    return torch.cat([y[15:], (GRAVITY * (among - (SUN + mass) * pull)).reshape(15, -1)])


def _orbit(x: Any, y: Tensor) -> Tensor:
    cube = (y[0] ** 2 + y[1] ** 2) ** 1.5
    return torch.stack([y[2], y[3], -y[0] / cube, -y[1] / cube])


def _spiral(x: Any, y: Tensor) -> Any:
    r = (y[0] ** 2 + y[1] ** 2).sqrt()
    return -y[1] - y[0] * y[2] / r, y[0] - y[1] * y[2] / r, y[0] / r


def _orbit_problem(number: int) -> Problem:
    e = 0.2 * number - 0.1
    return Problem(f"D{number}", _orbit, (1 - e, 0.0, 0.0, ((1 + e) / (1 - e)) ** 0.5))


PROBLEMS = [
    Problem("A1", lambda x, y: -y, (1.0,)),
    Problem("A2", lambda x, y: -(y**3) / 2, (1.0,)),
    Problem("A3", lambda x, y: y * x.cos(), (1.0,)),
    Problem("A4", lambda x, y: y / 4 * (1 - y / 20), (1.0,)),
    Problem("A5", lambda x, y: (y - x) / (y + x), (4.0,)),
    Problem("B1", lambda x, y: (2 * (y[0] - y[0] * y[1]), -(y[1] - y[0] * y[1])), (1.0, 3.0)),
    Problem("B2", lambda x, y: (-y[0] + y[1], y[0] - 2 * y[1] + y[2], y[1] - y[2]), (2.0, 0.0, 1.0)),
    Problem("B3", lambda x, y: (-y[0], y[0] - y[1] ** 2, y[1] ** 2), (1.0, 0.0, 0.0)),
    Problem("B4", _spiral, (3.0, 0.0, 0.0)),
    Problem("B5", lambda x, y: (y[1] * y[2], -y[0] * y[2], -0.51 * y[0] * y[1]), (0.0, 1.0, 1.0)),
    Problem("C1", _chain(torch.ones_like), (1.0, *[0.0] * 9)),
    Problem("C2", _chain(lambda member: member), (1.0, *[0.0] * 9)),
    Problem("C3", _diffusion, (1.0, *[0.0] * 9)),
    Problem("C4", _diffusion, (1.0, *[0.0] * 50)),
    Problem("C5", _planets, (*PLACES, *SPEEDS)),
    *(_orbit_problem(number) for number in range(1, 6)),
    Problem(
        "E1",
        lambda x, y: (y[1], -(y[1] / (x + 1) + (1 - 0.25 / (x + 1) ** 2) * y[0])),
        (0.6713967071418030, 0.09540051444747446),
    ),
    Problem("E2", lambda x, y: (y[1], (1 - y[0] ** 2) * y[1] - y[0]), (2.0, 0.0)),
    Problem("E3", lambda x, y: (y[1], y[0] ** 3 / 6 - y[0] + 2 * (2.78535 * x).sin()), (0.0, 0.0)),
    Problem("E4", lambda x, y: (y[1], 0.032 - 0.4 * y[1] ** 2), (30.0, 0.0)),
    Problem("E5", lambda x, y: (y[1], (1 + y[1] ** 2).sqrt() / (25 - x)), (0.0, 0.0)),
]
