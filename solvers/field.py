"""What a solver integrates: any callable `field(t, y, args) -> dy/dt`.

A field may offer more than its value. Solvers that need it look it up by name and otherwise refuse with a sentence:

==============================  ===================================================  =============================
attribute                       meaning                                              asked for by
==============================  ===================================================  =============================
`natural_step`                  the step length that is meant where none is given,   fixed-step solvers
                                a number above 0: 1.0 where y + f(t, y) is an        without `num_steps`
                                algorithm in its own right, which Euler then is      and `dt`
`iterate(y, args)`              T(y) = y + f(t, y) in one pass, where f does not     `Euler` at dt = 1, relaxation
                                depend on t                                          methods
`iteration(args)`               optional: y -> iterate(y, args) for many y, with     relaxation methods, where no
                                what does not depend on y made once; each result is  gradient is recorded
                                a new tensor
`linear_rate`                   the number c in f(t, y) = -c y + g(t, y)             `ExponentialEuler`
`contractive`                   True: trajectories approach each other in time       `Continuous` (warns)
`resolvent(v, rho, args)`       (G + rho I)^-1 (b + rho v), where the equilibria are `DouglasRachford`
                                the minimisers of 1/2 a^T G a - b^T a + h(a)
`prox(v, step, args)`           argmin_a h(a) + |a - v|^2 / (2 step)                 `DouglasRachford`
`factorise(rho, args)`          optional: v -> resolvent(v, rho, args), with the     `DouglasRachford`
                                factorisation made once
`solve_transposed(y, args, g)`  optional: w with -(df/dy)^T w = g at an equilibrium  `Implicit`
                                y; None where the field cannot
`require_gradient(args)`        optional: a ValueError where f is no gradient step   `Nesterov`
`code(y, args)`,                optional: from a state to the code a and back;       `DouglasRachford`
`state(a, args)`                without them the state is the code
==============================  ===================================================  =============================
"""

from typing import Any, Protocol

import torch
from torch import Tensor


class Field(Protocol):
    """The right-hand side of dy/dt = f(t, y, args).

    `t` is a scalar tensor, or one time per sample shaped to broadcast against `y`. `y` is one tensor, batch first:
    `y[i]` is a problem of its own. The result has the shape of `y`.
    """

    def __call__(self, t: Tensor, y: Tensor, args: Any, /) -> Tensor: ...


@torch.compiler.assume_constant_result
def defines(kind: type, name: str, *values: str) -> bool:
    """Whether a class of fields defines `name`, and no class derived from that one redefines one of `values`.

    What a field offers beside its value has to agree with it. A subclass that changes the value alone inherits what
    belongs to the old one; and a wrapper that passes attributes on has none of its own.
    """
    for cls in kind.__mro__:
        if name in vars(cls):
            return True
        if any(value in vars(cls) for value in values):
            return False
    return False


def iterates(field: Field) -> bool:
    """Whether `field` has an `iterate` that belongs to its value."""
    return defines(type(field), "iterate", "__call__", "forward")
