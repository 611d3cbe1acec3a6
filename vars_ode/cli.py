"""`vars-ode`: the command line."""

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Visual attention from recurrent sparse reconstruction (VARS) as an ODE with pluggable solvers.",
)


@app.callback()
def main() -> None:
    """Without a callback typer would turn a single command into the program itself."""


@app.command()
def demo(
    quick: Annotated[
        bool, typer.Option("--quick", help="Under a minute: 1 epoch on 1,000 images, 1 seed, 2 models.")
    ] = False,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.  [default: 5, or 1]")] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Trainings of each model, with seeds 0, 1, ...  [default: 2, or 1]")
    ] = None,
    attention: Annotated[
        list[str] | None,
        typer.Option(
            help="An attention to train; give the option again for more. By default softmax, vars-d-factor, "
            "vars-sd-factor and vars-sd-dictionary, out of vars_ode.available_attentions()."
        ),
    ] = None,
    solver: Annotated[
        str, typer.Option(help="Solver that the VARS models are trained with: a name, with -N for N steps.")
    ] = "euler-5",
    sparsity: Annotated[float, typer.Option(help="Weight lam of the l1 norm.")] = 0.3,
    horizon: Annotated[
        str,
        typer.Option(help='Steps of each update: "fixed", or drawn, as in "uniform 1-10" or "log-uniform 1-64 +0.25".'),
    ] = "fixed",
    out: Annotated[
        Path | None, typer.Option(help="Results folder: new, or to be continued.  [default: runs/demo]")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes of one thread each.  [default: all cores]")] = None,
) -> None:
    """Train models that differ in their attention alone, stress-test them, and write a report.

    Small vision transformers with softmax attention and with VARS attention are trained on the embedded Fashion-MNIST
    subset, then tested on clean, corrupted and attacked images; the VARS models once more with other solvers, without
    retraining. Ctrl-C keeps the finished runs, and the same command goes on from there.

    Writes results.csv, results.json, weights, plots and report.html into the results folder.
    """
    from vars_ode import demo as presets
    from vars_ode.report.study import write_report
    from vars_ode.study.run import run_study
    from vars_ode.training import parse_horizon

    default = presets.QUICK if quick else presets.FULL
    folder = out or Path("runs/demo-quick" if quick else "runs/demo")
    try:
        recipe = replace(default.recipe, horizon=parse_horizon(horizon))
        recipe = replace(recipe, epochs=epochs) if epochs is not None else recipe
        plan = replace(default, recipe=recipe, solver=solver, sparsity=sparsity)
        attentions = attention or (presets.QUICK_ATTENTIONS if quick else presets.ATTENTIONS)
        count = seeds if seeds is not None else (1 if quick else 2)
        failures = run_study(folder, plan, attentions, count, workers, _command())
        report = write_report(folder)
    except KeyboardInterrupt:
        finished = len(list(folder.glob("runs/*/run.json")))
        typer.echo(f"\nStopped. {finished} finished runs are kept in {folder}; the same command continues.", err=True)
        raise typer.Exit(130) from None
    except ValueError as error:
        typer.echo(f"vars-ode demo: {error}", err=True)
        raise typer.Exit(2) from None
    for failure in failures:
        typer.echo(f"failed: {failure}", err=True)
    typer.echo(f"Report: {report}")
    if failures:
        raise typer.Exit(1)


@app.command()
def convergence(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A timm model such as vit_tiny_patch16_224 or rvt_tiny, or an attention such as vars-d for the demo's "
            "small model with it. By default what --checkpoint belongs to, or else the small model.",
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
            "needs MODEL and --attention beside it. Random weights by default.",
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
    try:
        names = check_solvers([name.strip() for name in solvers.split(",")])
        subject = find_subject(model, attention, checkpoint, image, images, seed)
        facts = {
            "command": _command(),
            "model": subject.name,
            "input": str(image) if image else f"{len(subject.inputs)} embedded Fashion-MNIST test images",
            "seed": seed,
        }
        page = run_convergence(out, subject, names, layer, facts)
    except KeyboardInterrupt:
        typer.echo(f"\nStopped. What is in {out} is incomplete; the same command starts anew.", err=True)
        raise typer.Exit(130) from None
    except (ValueError, OSError, RuntimeError) as error:
        typer.echo(f"vars-ode convergence: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(f"Page: {page}")


@app.command()
def bench(
    name: Annotated[
        str,
        typer.Argument(
            help="equilibrium: iterations and time to a KKT residual, by solver. memory: of each adjoint, by steps. "
            "adjoint: forward and backward pass of each adjoint. adjoint-horizon: error of each adjoint's gradient, by "
            "horizon. rates: cost and tightness of the step bounds. vars-s: its Gram, applied and formed."
        ),
    ],
) -> None:
    """Measure speed, memory or accuracy on this machine and print a table. One thread."""
    import torch

    from solvers.checks import one_of
    from vars_ode.bench import BENCHES, table

    try:
        one_of("bench", name, BENCHES)
    except ValueError as error:
        typer.echo(f"vars-ode bench: {error}", err=True)
        raise typer.Exit(2) from None
    torch.set_num_threads(1)
    typer.echo(table(BENCHES[name]()))


def _command() -> str:
    return shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
