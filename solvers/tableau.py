"""Butcher tableaux: explicit Runge-Kutta methods as data that checks itself."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

Row = tuple[float, ...]
Tree = tuple["Tree", ...]  # a rooted tree, as the sorted tuple of what hangs from its root; () is a single node
_ROUNDING = 1e-12  # of sums of coefficients up to 90 in size, published with sixteen digits


@dataclass(frozen=True)
class ButcherTableau:
    """Coefficients of an explicit Runge-Kutta method with s stages.

    Stage i evaluates k_i = f(t + c_i h, y + h sum_j a_ij k_j); the step is y + h sum_i b_i k_i.

    Args:
        order: the order of convergence; the order conditions up to it are checked.
        a: rows 2, ..., s of the strictly lower triangular matrix, row i with i - 1 entries (s - 1 rows).
        b: weights (s).
        c: nodes (s), c_1 = 0.
    """

    order: int
    a: tuple[Row, ...]
    b: Row
    c: Row

    def __post_init__(self) -> None:
        stages = len(self.b)
        if len(self.c) != stages or [len(row) for row in self.a] != list(range(1, stages)):
            raise ValueError(f"{stages} weights need as many nodes, and rows of 1, ..., {stages - 1} coefficients")
        for node, row in zip(self.c, ((), *self.a), strict=True):
            if not _equal(sum(row), node):
                raise ValueError(f"row {row} of a sums to {sum(row)}, but its node is {node}")
        self._check_order_conditions()

    @property
    def num_stages(self) -> int:
        return len(self.b)

    @property
    def stability_limit(self) -> float:
        """The longest h for which steps on y' = -y do not grow: 2 for Euler's method, 2.785 for RK4.

        The interval of absolute stability on the negative real axis (Hairer & Wanner, Solving ODEs II, section IV.2).
        """
        return _stability_limit(self.a, self.b)

    def _check_order_conditions(self) -> None:
        """One per rooted tree of up to `order` nodes; Hairer, Norsett & Wanner, Solving ODEs I, theorem II.2.13."""
        weights: dict[Tree, list[float]] = {}
        for nodes in range(1, self.order + 1):
            for tree in _rooted_trees(nodes):
                value = sum(b * weight for b, weight in zip(self.b, self._stage_weights(tree, weights), strict=True))
                if not _equal(value, 1 / _density(tree)):
                    raise ValueError(
                        f"not of order {self.order}: {_name(tree)} is {value}, expected {1 / _density(tree)}"
                    )

    def _stage_weights(self, tree: Tree, known: dict[Tree, list[float]]) -> list[float]:
        """Of each stage as the root of `tree`: the product over the branches of sum_j a_ij (weight of j there)."""
        if tree not in known:
            weights = [1.0] * self.num_stages
            for branch in tree:
                inner = self._stage_weights(branch, known)
                sums = [sum(a * x for a, x in zip(row, inner, strict=False)) for row in ((), *self.a)]
                weights = [weight * total for weight, total in zip(weights, sums, strict=True)]
            known[tree] = weights
        return known[tree]


@dataclass(frozen=True)
class EmbeddedTableau:
    """A method with an error estimate, whose last stage is the field at the end of the step ("first same as last").

    All of it is checked: the embedded method is a tableau of its own, and so is the dense output at any point of the
    step, as a method whose step ends there.

    Args:
        method: the method by which steps are taken.
        error_order: the order of the embedded method, whose weights are b - b_error.
        b_error: weights (s) of the error estimate h sum_i b_error_i k_i.
        dense_order: the order of the dense output; None where there is none.
        dense: per stage the coefficients of x, x^2, ... in its weight b_i(x): the state at t + x h, 0 <= x <= 1, is
            y + h sum_i b_i(x) k_i.
    """

    method: ButcherTableau
    error_order: int
    b_error: Row
    dense_order: int | None = None
    dense: tuple[Row, ...] = ()

    def __post_init__(self) -> None:
        a, b, c = self.method.a, self.method.b, self.method.c
        if b[-1] or not all(map(_equal, a[-1], b)):
            raise ValueError(f"the last stage must be taken at the end of the step: row {a[-1]} of a is not b, {b}")
        embedded = tuple(weight - error for weight, error in zip(b, self.b_error, strict=True))
        ButcherTableau(self.error_order, a, embedded, c)
        if self.dense_order is None:
            return
        if not all(map(_equal, self.weights_at(1.0), b)):
            raise ValueError(f"the dense output ends with the weights {self.weights_at(1.0)} and not with b, {b}")
        for x in (0.5, 0.8):
            shorter = [tuple(entry / x for entry in row) for row in (*a, self.weights_at(x), c)]
            ButcherTableau(self.dense_order, tuple(shorter[:-2]), *shorter[-2:])

    @cached_property
    def coefficients(self) -> np.ndarray:
        """The rows of a from the second stage on, and b_error below them: (s, s)."""
        stages = self.method.num_stages
        return np.array([(*row, *[0.0] * (stages - len(row))) for row in (*self.method.a, self.b_error)])

    def weights_at(self, x: float) -> Row:
        """b_i(x), (s)."""
        return tuple(sum(p * x ** (n + 1) for n, p in enumerate(row)) for row in self.dense)


def hermite(b: Row) -> tuple[Row, ...]:
    """Dense output of order 3 for any method of that order: the cubic through both ends of the step and their rates."""
    ends = [(0.0, 0.0, 0.0)] * len(b)
    ends[0], ends[-1] = (1.0, -2.0, 1.0), (0.0, -1.0, 1.0)
    return tuple((x, 3 * weight + x2, -2 * weight + x3) for weight, (x, x2, x3) in zip(b, ends, strict=True))


def _equal(value: float, expected: float) -> bool:
    return math.isclose(value, expected, rel_tol=1e-12, abs_tol=_ROUNDING)


@lru_cache
def _rooted_trees(nodes: int) -> tuple[Tree, ...]:
    """Those with as many nodes: 1, 1, 2, 4, 9, 20, 48, 115, ... of them."""
    if nodes == 1:
        return ((),)
    return tuple(sorted({larger for tree in _rooted_trees(nodes - 1) for larger in _with_a_leaf(tree)}))


def _with_a_leaf(tree: Tree) -> Iterator[Tree]:
    """What becomes of a tree when a node is attached to any one of its nodes."""
    yield tuple(sorted((*tree, ())))
    for i, branch in enumerate(tree):
        for larger in _with_a_leaf(branch):
            yield tuple(sorted((*tree[:i], larger, *tree[i + 1 :])))


def _size(tree: Tree) -> int:
    return 1 + sum(map(_size, tree))


def _density(tree: Tree) -> int:
    return _size(tree) * math.prod(map(_density, tree))


def _name(tree: Tree) -> str:
    """The condition in the notation of the tables, where c stands for the nodes: "sum b c a c^2"."""
    return " ".join(["sum b", *_factors(tree)])


def _factors(tree: Tree) -> list[str]:
    leaves = tree.count(())
    power = [] if not leaves else ["c" if leaves == 1 else f"c^{leaves}"]
    inner = [_factors(branch) for branch in tree if branch]
    return power + [f"a {part[0]}" if len(part) == 1 else f"a ({' '.join(part)})" for part in inner]


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
