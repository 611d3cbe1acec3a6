"""`vars-ode bench`."""

from pathlib import Path
from typing import Annotated

import typer

from vars_ode.cli.common import refusals


def bench(
    name: Annotated[
        str,
        typer.Argument(
            help="layer: VARS layers over their matrix products and over fused attention. model: RVT-Ti with each "
            "attention. memory: of each adjoint, by steps. solver: fixed steps over a hand-written loop, error "
            "control over libraries for it. "
            "equilibrium: iterations and time to a KKT residual, by solver. "
            "adjoint: forward and backward pass of each adjoint. adjoint-horizon: error of each adjoint's gradient, by "
            "horizon. truncated: the truncated gradient beside the implicit one. rates: cost and tightness of the step "
            "bounds. vars-s: its Gram, applied and formed. convert: a converted model over the original."
        ),
    ],
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the table there, with the machine and versions.")
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            metavar="OLD.json",
            help="A table that --json wrote: name the ratios that have changed, and exit with 1 if there are any.",
        ),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="How much a ratio may change for --compare: 0.2 is a fifth, up or down.")
    ] = 0.2,
    device: Annotated[
        str | None, typer.Option(help="Of layer, model and memory: cpu, cuda.  [default: cpu]", show_default=False)
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Of layer and model: under torch.compile too. Needs a C++ compiler.")
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="CHECKOUT",
            help="Of model: another checkout of this project, such as of git worktree add, measured in turns.",
        ),
    ] = None,
) -> None:
    """Measure speed, memory or accuracy on this machine and print a table. One thread."""
    import torch

    from vars_ode.bench import record, run, table

    given = {"device": device, "compiled": compiled or None, "against": against and str(against)}
    options = {option: value for option, value in given.items() if value is not None}
    torch.set_num_threads(1)
    with refusals("bench"):
        old = record.read(compare) if compare else None
        rows = run(name, options)
        typer.echo(table(rows))
        new = record.record(name, rows, options)
        if json:
            record.write(json, new)
        changes = record.changes(old, new, tolerance) if old else []
    if old:
        for line in record.other_hosts(old, new):
            typer.echo(f"another machine or version, {line}", err=True)
        typer.echo("\n".join(map(str, changes)) or f"no ratio has changed by more than {tolerance:.0%}")
    raise typer.Exit(1 if changes else 0)
