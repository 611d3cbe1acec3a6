"""`vars-ode convergence`."""

from pathlib import Path
from typing import Annotated

import typer

from vars_ode.cli.common import command_line, refusals


def convergence(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A timm model such as vit_tiny_patch16_224 or rvt_tiny, or an attention such as vars-d for the demo's "
            "small model with it. By default what --checkpoint belongs to.",
            show_default=False,
        ),
    ] = None,
    attention: Annotated[
        str | None,
        typer.Option(help="Out of vars_ode.available_attentions().  [default: vars-sd-dictionary]"),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="A saved model: a folder of save_pretrained, such as a run of the demo, or a file; a state dict alone "
            "needs MODEL and --attention beside it; or one that comes with the package, such as "
            "fashion-mnist/vars-sd-coupling, which is the default. A MODEL alone has random weights.",
            show_default=False,
        ),
    ] = None,
    image: Annotated[Path | None, typer.Option(help="A picture; by default a few of the embedded test images.")] = None,
    images: Annotated[int, typer.Option(help="How many of the embedded images.")] = 3,
    solvers: Annotated[str, typer.Option(help="Names with commas between, out of solvers.available().")] = (
        "euler,rk4,nesterov"
    ),
    layer: Annotated[
        str | None, typer.Option(help="The layer to measure, such as blocks.0.attn; by default the last.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of random weights.")] = 0,
    out: Annotated[Path, typer.Option(help="Results folder: new, or of an earlier run of this command.")] = Path(
        "runs/convergence"
    ),
) -> None:
    """Measure how the solve of a VARS layer converges: orders, work-precision, energy, basin, attention maps.

    Works in one thread, so that times compare. Writes a CSV and a PNG per measure and index.html, which holds them all,
    into the results folder.
    """
    import torch

    from vars_ode.analysis.convergence import check_solvers
    from vars_ode.analysis.subjects import find_subject
    from vars_ode.report.convergence import run_convergence

    torch.set_num_threads(1)
    stopped = f"Stopped. What is in {out} is incomplete; the same command starts anew."
    with refusals("convergence", lambda: stopped, (ValueError, OSError, RuntimeError)):
        names = check_solvers([name.strip() for name in solvers.split(",")])
        subject = find_subject(model, attention, checkpoint, image, images, seed)
        facts = {
            "command": command_line(),
            "model": subject.name,
            "input": str(image) if image else f"{len(subject.inputs)} embedded Fashion-MNIST test images",
            "seed": seed,
        }
        page = run_convergence(out, subject, names, layer, facts)
    typer.echo(f"Page: {page}")
