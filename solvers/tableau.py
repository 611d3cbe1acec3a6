"""Butcher tableaux: explicit Runge-Kutta methods as data that checks itself."""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import product


@dataclass(frozen=True)
class ButcherTableau:
    """Coefficients of an explicit Runge-Kutta method with s stages.

    Stage i evaluates k_i = f(t + c_i h, y + h sum_j a_ij k_j); the step is y + h sum_i b_i k_i.

    Args:
        order: the order of convergence, at most 4; the order conditions up to it are checked.
        a: rows 2, ..., s of the strictly lower triangular matrix, row i with i - 1 entries (s - 1 rows).
        b: weights (s).
        c: nodes (s), c_1 = 0.
    """

    order: int
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]

    def __post_init__(self) -> None:
        stages = len(self.b)
        if len(self.c) != stages or [len(row) for row in self.a] != list(range(1, stages)):
            raise ValueError(f"{stages} weights need as many nodes, and rows of 1, ..., {stages - 1} coefficients")
        for node, row in zip(self.c, ((), *self.a), strict=True):
            if not math.isclose(sum(row), node, abs_tol=1e-14):
                raise ValueError(f"row {row} of a sums to {sum(row)}, but its node is {node}")
        for name, value, expected in self._order_conditions():
            if not math.isclose(value, expected, abs_tol=1e-14):
                raise ValueError(f"not of order {self.order}: {name} is {value}, expected {expected}")

    @property
    def num_stages(self) -> int:
        return len(self.b)

    @property
    def stability_limit(self) -> float:
        """The longest h for which steps on y' = -y do not grow: 2 for Euler's method, 2.785 for RK4.

        The interval of absolute stability on the negative real axis (Hairer & Wanner, Solving ODEs II, section IV.2).
        """
        return _stability_limit(self.a, self.b)

    def _order_conditions(self) -> list[tuple[str, float, float]]:
        """(name, value, expected) up to `order`; Hairer, Norsett & Wanner, Solving ODEs I, table II.2.1."""
        b, c, s = self.b, self.c, range(self.num_stages)
        a = [[*row, *[0.0] * (self.num_stages - len(row))] for row in ((), *self.a)]
        ac = [sum(a[i][j] * c[j] for j in s) for i in s]
        conditions = [
            (1, "sum b", sum(b), 1.0),
            (2, "sum b c", sum(b[i] * c[i] for i in s), 1 / 2),
            (3, "sum b c^2", sum(b[i] * c[i] ** 2 for i in s), 1 / 3),
            (3, "sum b a c", sum(b[i] * ac[i] for i in s), 1 / 6),
            (4, "sum b c^3", sum(b[i] * c[i] ** 3 for i in s), 1 / 4),
            (4, "sum b c a c", sum(b[i] * c[i] * ac[i] for i in s), 1 / 8),
            (4, "sum b a c^2", sum(b[i] * a[i][j] * c[j] ** 2 for i, j in product(s, s)), 1 / 12),
            (4, "sum b a a c", sum(b[i] * a[i][j] * ac[j] for i, j in product(s, s)), 1 / 24),
        ]
        return [(name, value, expected) for order, name, value, expected in conditions if order <= self.order]


@lru_cache
def _stability_limit(a: tuple[tuple[float, ...], ...], b: tuple[float, ...]) -> float:
    """The end of the interval from 0 in which |R(-h)| <= 1, where R(z) = 1 + sum_k z^k b^T A^(k-1) 1."""
    coefficients, powers = [1.0], [1.0] * len(b)
    for _ in b:
        coefficients.append(sum(weight * power for weight, power in zip(b, powers, strict=True)))
        powers = [sum(x * power for x, power in zip(row, powers, strict=False)) for row in ((), *a)]

    def grows(h: float) -> bool:
        return abs(sum(c * (-h) ** k for k, c in enumerate(coefficients))) > 1 + 1e-9

    low = next(n for n in range(1, 10_000) if grows(n / 100)) / 100 - 0.01
    high = low + 0.01
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if grows(middle) else (middle, high)
    return low
