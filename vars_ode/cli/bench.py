"""`vars-ode bench`."""

from typing import Annotated

import typer

from vars_ode.cli.common import refusals


def bench(
    name: Annotated[
        str,
        typer.Argument(
            help="equilibrium: iterations and time to a KKT residual, by solver. memory: of each adjoint, by steps. "
            "adjoint: forward and backward pass of each adjoint. adjoint-horizon: error of each adjoint's gradient, by "
            "horizon. truncated: the truncated gradient beside the implicit one. rates: cost and tightness of the step "
            "bounds. solver: fixed steps over a hand-written loop, error control over libraries for it. vars-s: its "
            "Gram, applied and formed. convert: a converted model over the original."
        ),
    ],
) -> None:
    """Measure speed, memory or accuracy on this machine and print a table. One thread."""
    import torch

    from solvers.checks import one_of
    from vars_ode.bench import BENCHES, table

    with refusals("bench"):
        one_of("bench", name, BENCHES)
    torch.set_num_threads(1)
    typer.echo(table(BENCHES[name]()))
