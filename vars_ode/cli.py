"""`vars-ode`: the command line."""

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vars_ode.study.plan import Plan

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"vars-ode {metadata.version('vars-ode')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Visual attention from recurrent sparse reconstruction (VARS) as an ODE with pluggable solvers."""


@app.command()
def info() -> None:
    """Print versions, machine, devices and threads: for bug reports, and to read results beside."""
    from vars_ode.environment import environment

    found = environment()
    width = max(map(len, found))
    for name, value in found.items():
        typer.echo(f"{name.ljust(width)}  {value}")


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
    with _refusals("demo"):
        recipe = replace(default.recipe, horizon=parse_horizon(horizon))
        recipe = replace(recipe, epochs=epochs) if epochs is not None else recipe
        plan = replace(default, recipe=recipe, solver=solver, sparsity=sparsity, ridge=ridge)
        _study(folder, plan, attention or (presets.QUICK_ATTENTIONS if quick else presets.ATTENTIONS), count, workers)


@app.command()
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
    with _refusals("study"):
        settings, names, seeds = read_plan(plan)
        _study(folder, settings, names, seeds, workers)
    typer.echo(dial_table(read_results(folder)))


def _study(folder: Path, plan: "Plan", names: Sequence[str], seeds: int, workers: int | None) -> None:
    """Run a study and write its report."""
    from vars_ode.report.study import write_report
    from vars_ode.study.run import run_study

    try:
        failures = run_study(folder, plan, names, seeds, workers, _command())
        report = write_report(folder)
    except KeyboardInterrupt:
        finished = len(list(folder.glob("runs/*/run.json")))
        typer.echo(f"\nStopped. {finished} finished runs are kept in {folder}; the same command continues.", err=True)
        raise typer.Exit(130) from None
    for failure in failures:
        typer.echo(f"failed: {failure}", err=True)
    typer.echo(f"Report: {report}")
    if failures:
        raise typer.Exit(1)


@contextmanager
def _refusals(command: str) -> Iterator[None]:
    """A ValueError is the user's: its sentence, without a traceback."""
    try:
        yield
    except ValueError as error:
        typer.echo(f"vars-ode {command}: {error}", err=True)
        raise typer.Exit(2) from None


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
def dial(
    checkpoint: Annotated[
        Path, typer.Argument(help="A saved model: a folder of save_pretrained, such as a run of the demo, or a file.")
    ],
    data: Annotated[
        str, typer.Option(help="fashion-mnist (embedded), or a folder with one subfolder of pictures per class.")
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
    with _refusals("dial"):
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


@app.command()
def bench(
    name: Annotated[
        str,
        typer.Argument(
            help="equilibrium: iterations and time to a KKT residual, by solver. memory: of each adjoint, by steps. "
            "adjoint: forward and backward pass of each adjoint. adjoint-horizon: error of each adjoint's gradient, by "
            "horizon. truncated: the truncated gradient beside the implicit one. rates: cost and tightness of the step "
            "bounds. vars-s: its Gram, applied and formed."
        ),
    ],
) -> None:
    """Measure speed, memory or accuracy on this machine and print a table. One thread."""
    import torch

    from solvers.checks import one_of
    from vars_ode.bench import BENCHES, table

    with _refusals("bench"):
        one_of("bench", name, BENCHES)
    torch.set_num_threads(1)
    typer.echo(table(BENCHES[name]()))


@app.command()
def convert(
    model: Annotated[str, typer.Argument(help="A model of timm's; `vars-ode models` lists those that convert.")],
    out: Annotated[Path, typer.Option(help="The folder to write, as vars_ode.save_pretrained does.")],
    attention: Annotated[str, typer.Option(help="Out of `vars-ode models --attentions`.")] = "vars-softmax",
    weights: Annotated[
        Path | None,
        typer.Option(
            help="The model's weights: safetensors, .pth, or a folder with model.safetensors.", show_default=False
        ),
    ] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Let timm download its weights instead.")] = False,
    match: Annotated[
        str | None,
        typer.Option(help='Layers to convert, such as "blocks.[0-3].attn"; all by default.', show_default=False),
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option(help="Outputs of the head; by default as in the weights.", show_default=False)
    ] = None,
) -> None:
    """Replace the attention of a pretrained timm model by VARS attention, and save the model.

    With vars-softmax its outputs stay as they were. Random weights without --weights and --pretrained.
    """
    from vars_ode.conversion import convert_attention
    from vars_ode.saving import create_with_weights, save_pretrained

    try:
        built = create_with_weights(model, weights, pretrained, num_classes)
        report = convert_attention(built, attention, match)
        save_pretrained(built, out)
    except (ValueError, OSError, RuntimeError) as error:
        typer.echo(f"vars-ode convert: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(f"{report}\nSaved: {out}")


@app.command()
def models(
    pattern: Annotated[str, typer.Argument(help='A glob on the names of models, such as "eva02*".')] = "*",
    attentions: Annotated[bool, typer.Option("--attentions", help="List the names of attentions instead.")] = False,
    family: Annotated[
        str | None, typer.Option(help="A glob on timm's modules, such as vision_transformer.", show_default=False)
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Models that do not convert too, with the reason.")] = False,
) -> None:
    """List the timm models whose attention can be converted, and the names of attentions."""
    from vars_ode.conversion import convertible_attentions
    from vars_ode.conversion.families import listed
    from vars_ode.models import available_attentions

    if attentions:
        for name in available_attentions():
            typer.echo(f"{name}{'  (by conversion too)' if name in convertible_attentions() else ''}")
        return
    rows = [(name, row) for name, row in listed(pattern, family=family) if every or row.converted]
    if not rows:
        typer.echo(f"vars-ode models: no model{'' if every else ' that converts'} matches {pattern!r}", err=True)
        raise typer.Exit(2)
    for name, row in rows:
        reasons = "; ".join(f"{layer}: {reason}" for layer, reason in row.left_alone.items())
        typer.echo(f"{name}  {row.module}  {row.outcome}{f'  ({reasons})' if reasons else ''}")


def _command() -> str:
    return shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
