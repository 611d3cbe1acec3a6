"""Butcher tableaux: explicit Runge-Kutta methods as data that checks itself."""

import math
from dataclasses import dataclass
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
