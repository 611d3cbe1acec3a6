"""`vars-ode dial`."""

from pathlib import Path
from typing import Annotated

import typer

from vars_ode.cli.common import refusals


def dial(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="A saved model: a folder of save_pretrained, such as a run of the demo, or a file; or one that comes "
            "with the package, such as fashion-mnist/vars-sd-factor."
        ),
    ],
    data: Annotated[
        str,
        typer.Option(help="fashion-mnist or digits (embedded), or a folder with one subfolder of pictures per class."),
    ] = "fashion-mnist",
    solvers: Annotated[
        str,
        typer.Option(
            help="Solves: NAME@TIME in steps of dt = 1 (several times with commas), NAME@TIME/STEPS, or NAME to the "
            'equilibrium; ";" between.'
        ),
    ] = "euler@1,2,3,5,10,20; rk4@5; fixed_point",
    corruption: Annotated[
        list[str] | None,
        typer.Option(help="Also under it; give the option again for more.  [default: small_gaussian_noise]"),
    ] = None,
    severity: Annotated[int, typer.Option(help="Of the corruptions, from 1.")] = 2,
    images: Annotated[int | None, typer.Option(help="How many of the pictures.  [default: all]")] = None,
    out: Annotated[Path, typer.Option(help="Results folder: new, or of an earlier run of this command.")] = Path(
        "runs/dial"
    ),
) -> None:
    """Measure a trained model under other solves of its layers, without retraining: accuracy against cost.

    Works in one thread, so that times compare. Prints a table; writes dial.csv and dial.png into the results folder.
    """
    import torch

    from vars_ode.analysis import accuracy_by_solver
    from vars_ode.analysis.subjects import find_classifier
    from vars_ode.bench import table
    from vars_ode.files import claim_folder

    torch.set_num_threads(1)
    with refusals("dial"):
        subject = find_classifier(checkpoint, data, images)
        corruptions = [(name, severity) for name in corruption or ["small_gaussian_noise"]]
        claim_folder(out, "dial.csv", "dial")
        found = accuracy_by_solver(subject.model, subject.data, solvers, corruptions=corruptions)
        found.to_csv(out / "dial.csv")
        found.plot().savefig(out / "dial.png", dpi=150)
    typer.echo(subject.name)
    typer.echo(table([{name: value for name, value in row.items() if name != "notes"} for row in found.to_rows()]))
    for sentence in found.findings():
        typer.echo(sentence)
    typer.echo(f"Picture: {out / 'dial.png'}")
