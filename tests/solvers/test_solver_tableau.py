"""Butcher tableaux check themselves."""

import dataclasses
from typing import Any

import pytest

import solvers
from solvers import ButcherTableau

RK4 = solvers.RK4.tableau


def test_stages() -> None:
    assert [cls.tableau.num_stages for cls in (solvers.Euler, solvers.Midpoint, solvers.Heun, solvers.RK4)] == [
        1,
        2,
        2,
        4,
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b": (1 / 6, 1 / 3, 1 / 3, 1 / 5)}, "not of order 4: sum b is"),
        ({"b": (1 / 4, 1 / 4, 1 / 4, 1 / 4)}, "not of order 4: sum b c"),
        ({"a": ((1 / 2,), (1 / 2, 0.0), (0.0, 0.0, 1.0))}, "not of order 4: sum b a c is"),
        ({"c": (0.0, 1 / 2, 1 / 3, 1.0)}, "sums to 0.5, but its node is 0.333"),
        ({"c": (0.1, 1 / 2, 1 / 2, 1.0)}, "but its node is 0.1"),
        ({"c": (0.0, 1 / 2, 1.0)}, "4 weights need as many nodes"),
        ({"a": ((1 / 2,), (0.0, 1 / 2))}, "rows of 1, ..., 3 coefficients"),
        ({"a": ((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0, 0.0))}, "rows of 1, ..., 3 coefficients"),
    ],
)
def test_wrong_coefficients_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RK4, **change)


def test_an_order_too_high_is_refused() -> None:
    for cls, order in ((solvers.Euler, 2), (solvers.Midpoint, 3), (solvers.Heun, 3)):
        with pytest.raises(ValueError, match=f"not of order {order}"):
            dataclasses.replace(cls.tableau, order=order)


def test_all_conditions_of_order_three_are_independent() -> None:
    """Kutta's third-order method passes; changed so that a single condition breaks, it does not."""
    kutta = ButcherTableau(order=3, a=((1 / 2,), (-1.0, 2.0)), b=(1 / 6, 2 / 3, 1 / 6), c=(0.0, 1 / 2, 1.0))
    with pytest.raises(ValueError, match="sum b a c"):
        dataclasses.replace(kutta, a=((1 / 2,), (1.0, 0.0)))
    with pytest.raises(ValueError, match=r"sum b c\^2"):
        ButcherTableau(order=3, a=((1 / 2,), (1 / 2, 0.0)), b=(0.0, 1 / 2, 1 / 2), c=(0.0, 1 / 2, 1 / 2))
