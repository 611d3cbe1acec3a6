"""What a solver integrates: any callable `field(t, y, args) -> dy/dt`.

A field may offer more than its value. Solvers that need it look it up by name and otherwise refuse with a sentence:

==============================  ===================================================  ======================
attribute                       meaning                                              asked for by
==============================  ===================================================  ======================
`natural_step`                  the step length that is meant where none is given,   fixed-step solvers
                                a number above 0: 1.0 where y + f(t, y) is an        without `num_steps`
                                algorithm in its own right, which Euler then is      and `dt`
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
==============================  ===================================================  ======================
"""

from typing import Any, Protocol

from torch import Tensor


class Field(Protocol):
    """The right-hand side of dy/dt = f(t, y, args).

    `t` is a scalar tensor, or one time per sample shaped to broadcast against `y`. `y` is one tensor, batch first:
    `y[i]` is a problem of its own. The result has the shape of `y`.
    """

    def __call__(self, t: Tensor, y: Tensor, args: Any, /) -> Tensor: ...
