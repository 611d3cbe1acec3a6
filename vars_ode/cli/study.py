"""`vars-ode demo` and `vars-ode study`: a grid of trainings and measurements, with its report."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vars_ode.cli.common import command_line, refusals

if TYPE_CHECKING:
    from vars_ode.study.plan import Plan


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
            "vars-sd-factor and vars-sd-coupling, out of vars_ode.available_attentions()."
        ),
    ] = None,
    solver: Annotated[
        str, typer.Option(help="Solve that the VARS models are trained with: NAME@TIME, in steps of dt = 1.")
    ] = "euler@5",
    sparsity: Annotated[float, typer.Option(help="Weight lam of the l1 norm.")] = 0.3,
    ridge: Annotated[float, typer.Option(help="Of the elastic net, as a share of the step bound's L.")] = 0.05,
    horizon: Annotated[
        str,
        typer.Option(help='Steps of each update: "fixed", or drawn, as in "uniform 1-10" or "log-uniform 1-64 +0.25".'),
    ] = "uniform 1-10",
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
    from vars_ode.training import parse_horizon

    default = presets.QUICK if quick else presets.FULL
    folder = out or Path("runs/demo-quick" if quick else "runs/demo")
    count = seeds if seeds is not None else (1 if quick else 2)
    with refusals("demo", lambda: _kept(folder)):
        recipe = replace(default.recipe, horizon=parse_horizon(horizon))
        recipe = replace(recipe, epochs=epochs) if epochs is not None else recipe
        plan = replace(default, recipe=recipe, solver=solver, sparsity=sparsity, ridge=ridge)
        _study(folder, plan, attention or (presets.QUICK_ATTENTIONS if quick else presets.ATTENTIONS), count, workers)


def study(
    plan: Annotated[Path, typer.Argument(help="A YAML file, such as docs/study/dial.yaml.")],
    out: Annotated[
        Path | None, typer.Option(help="Results folder: new, or to be continued.  [default: runs/NAME-OF-THE-PLAN]")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes of one thread each.  [default: all cores]")] = None,
) -> None:
    """Train and measure the models of a plan, and print their accuracy under every solve.

    Finished trainings and measurements in the results folder are kept, so that the same command goes on after a stop.
    Writes results.csv, results.json, weights, plots and report.html into the results folder.
    """
    from vars_ode.study.plan import read_plan
    from vars_ode.study.records import read_results
    from vars_ode.study.tables import dial_table

    folder = out or Path("runs") / plan.stem
    with refusals("study", lambda: _kept(folder)):
        settings, names, seeds = read_plan(plan)
        _study(folder, settings, names, seeds, workers)
    typer.echo(dial_table(read_results(folder)))


def _kept(folder: Path) -> str:
    finished = len(list(folder.glob("runs/*/run.json")))
    return f"Stopped. {finished} finished runs are kept in {folder}; the same command continues."


def _study(folder: Path, plan: "Plan", names: Sequence[str], seeds: int, workers: int | None) -> None:
    """Run a study and write its report."""
    from vars_ode.report.study import write_report
    from vars_ode.study.run import run_study

    failures = run_study(folder, plan, names, seeds, workers, command_line())
    report = write_report(folder)
    for failure in failures:
        typer.echo(f"failed: {failure}", err=True)
    typer.echo(f"Report: {report}")
    if failures:
        raise typer.Exit(1)
