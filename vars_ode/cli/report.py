"""`vars-ode report`."""

from pathlib import Path
from typing import Annotated

import typer

from vars_ode.cli.common import refusals


def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Folders of `vars-ode evaluate`, each as FOLDER or NAME=FOLDER. Those of one name are seeds of one "
            "model; by default the name is the model's and its attention's."
        ),
    ],
    baseline: Annotated[
        str | None, typer.Option(help="The name that the others are compared to.  [default: the first]")
    ] = None,
    out: Annotated[Path, typer.Option(help="Results folder: new, or of an earlier run of this command.")] = Path(
        "runs/report"
    ),
) -> None:
    """Compare evaluated models: accuracies over seeds, paired differences with intervals, plots.

    The runs must have been measured on the same images. Conditions that only some of them have are left out and named.
    Writes report.html, accuracies.csv, differences.csv and comparison.png into the results folder.
    """
    from vars_ode.comparison import Comparison
    from vars_ode.files import claim_folder
    from vars_ode.report.comparison import evaluated, facts_of, write_comparison

    with refusals("report"):
        found = evaluated(runs)
        comparison = Comparison.of({name: [e.flat() for e in seeds] for name, seeds in found.items()}, baseline)
        claim_folder(out, "differences.csv", "report")
        page = write_comparison(comparison, out, facts_of(found))
    for sentence in comparison.findings():
        typer.echo(sentence)
    typer.echo(f"Page: {page}")
