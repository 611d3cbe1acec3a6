"""`vars-ode evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vars_ode.cli.common import command_line, refusals

if TYPE_CHECKING:
    from vars_ode.evaluation import Evaluation

_TREE = "Its folder, as the archive leaves it."


def evaluate(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="A saved model: a folder of save_pretrained, such as a run of train, or a file; or "
            "one that comes with the package, such as fashion-mnist/softmax."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Results folder: new, or of this evaluation.")],
    data: Annotated[
        str,
        typer.Option(
            help="The clean images: fashion-mnist or digits (embedded); a folder with a subfolder of pictures per "
            "class, or with test/ or val/ in it; or a data set of timm's name, such as torch/cifar10."
        ),
    ] = "fashion-mnist",
    data_dir: Annotated[
        str | None, typer.Option(help="Where a data set of timm's name lies; nothing is downloaded.")
    ] = None,
    split: Annotated[str, typer.Option(help="Of a data set of timm's name.")] = "validation",
    conditions: Annotated[
        str,
        typer.Option(
            help="With commas between: clean; imagenet-c, imagenet-a, imagenet-r, imagenet-sketch, imagenetv2, "
            "cifar-10-c, cifar-100-c; small (corruptions for small images); corruptions by name; fgsm, pgd, square, "
            "autoattack; masking. imagenet-c is made of the clean images where no folder is given."
        ),
    ] = "clean",
    imagenet_c: Annotated[Path | None, typer.Option("--imagenet-c", help=_TREE)] = None,
    imagenet_a: Annotated[Path | None, typer.Option("--imagenet-a", help=_TREE)] = None,
    imagenet_r: Annotated[Path | None, typer.Option("--imagenet-r", help=_TREE)] = None,
    imagenet_sketch: Annotated[Path | None, typer.Option("--imagenet-sketch", help=_TREE)] = None,
    imagenetv2: Annotated[Path | None, typer.Option("--imagenetv2", help=_TREE)] = None,
    cifar_10_c: Annotated[Path | None, typer.Option("--cifar-10-c", help=_TREE)] = None,
    cifar_100_c: Annotated[Path | None, typer.Option("--cifar-100-c", help=_TREE)] = None,
    severities: Annotated[
        str | None, typer.Option(help="Of corruptions, such as 1,3,5.  [default: all]", show_default=False)
    ] = None,
    images: Annotated[
        int | None, typer.Option(help="How many of each set, evenly spread.  [default: all]", show_default=False)
    ] = None,
    solver: Annotated[
        str | None,
        typer.Option(help="How the layers are solved, such as euler@10 or nesterov.  [default: as saved]"),
    ] = None,
    eps: Annotated[str, typer.Option(help="Radius of the attacks' ball, on the [0, 1] scale: 8/255 or 0.03.")] = (
        "1/255"
    ),
    norm: Annotated[str, typer.Option(help="Of the ball: linf or l2.")] = "linf",
    steps: Annotated[int, typer.Option(help="Of PGD.")] = 5,
    step_size: Annotated[str | None, typer.Option(help="Of PGD.  [default: half of eps]", show_default=False)] = None,
    restarts: Annotated[int, typer.Option(help="Of PGD.")] = 1,
    queries: Annotated[int, typer.Option(help="Of Square, per image.")] = 5000,
    draws: Annotated[int, typer.Option(help="masking: draws of random features, per step of PGD.")] = 8,
    transfer: Annotated[
        str | None,
        typer.Option(
            help='masking: solves to attack through, with ";" between.  [default: single-step and another solver]'
        ),
    ] = None,
    transfer_adjoints: Annotated[
        str | None,
        typer.Option(
            help="masking: adjoints to attack through.  [default: another one, of an equilibrium]", show_default=False
        ),
    ] = None,
    frost: Annotated[
        Path | None, typer.Option(help="Folder with photographs of frost.  [default: frost is drawn]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of noise and attacks.")] = 0,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave damaged pictures out, and count them.")
    ] = False,
    baseline: Annotated[
        Path | None, typer.Option(help="Results folder of another model, for mCE relative to it.", show_default=False)
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", help="Images per batch, in each process.")] = 64,
    workers: Annotated[int, typer.Option("--workers", "-j", help="Processes that load pictures.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.  [default: a GPU where there is one]")] = None,
    card: Annotated[bool, typer.Option(help="Put the results into the README.md of the model's folder.")] = True,
) -> None:
    """Measure a saved model: clean, on benchmarks of robustness, under corruptions and attacks, by image.

    An interrupted evaluation goes on with the same command, and conditions can be added later. Started by torchrun or
    `accelerate launch`, several processes share the images.

    Writes results.csv, evaluation.json and outcomes.npz (what the model answered for each image).
    """
    from accelerate import PartialState

    from vars_ode.evaluation import EvaluationSettings, run_evaluation

    trees = {
        "imagenet-c": imagenet_c,
        "imagenet-a": imagenet_a,
        "imagenet-r": imagenet_r,
        "imagenet-sketch": imagenet_sketch,
        "imagenetv2": imagenetv2,
        "cifar-10-c": cifar_10_c,
        "cifar-100-c": cifar_100_c,
    }
    stopped = f"Stopped. The finished conditions are kept in {out}; the same command goes on."
    with refusals("evaluate", lambda: stopped, (ValueError, OSError, RuntimeError)):
        settings = EvaluationSettings(
            data=data,
            data_dir=data_dir,
            split=split,
            conditions=_names(conditions),
            trees={name: str(path) for name, path in trees.items() if path is not None},
            severities=None if severities is None else tuple(_whole(text) for text in _names(severities)),
            images=images,
            seed=seed,
            solver=solver,
            eps=_fraction("--eps", eps),
            norm=norm,
            steps=steps,
            step_size=None if step_size is None else _fraction("--step-size", step_size),
            restarts=restarts,
            queries=queries,
            draws=draws,
            transfer=transfer,
            transfer_adjoints=None if transfer_adjoints is None else _names(transfer_adjoints),
            frost=None if frost is None else str(frost),
            skip_unreadable=skip_unreadable,
        )
        found = run_evaluation(
            checkpoint,
            settings,
            out,
            batch_size=batch_size,
            workers=workers,
            device=device,
            baseline=baseline,
            card=card,
            command=command_line(),
            report=lambda key, accuracy: typer.echo(f"{key}: {100 * accuracy:.1f} %", err=True),
        )
    if PartialState().is_main_process:
        _tell(found)
        typer.echo(f"Results: {out}")


def _tell(found: "Evaluation") -> None:
    """What was measured, in tables and sentences."""
    from vars_ode.bench import table
    from vars_ode.evaluation.card import summary_rows

    typer.echo(found.record["model"]["name"])
    typer.echo(table([{"condition": name, "measured": value} for name, value in summary_rows(found.summary)]))
    masking = found.summary["masking"]
    if masking:
        typer.echo(table(masking["table"]))
        for sentence in masking["warnings"]:
            typer.echo(f"Warning: {sentence}")
    for name, corruptions in found.summary["corruptions"].items():
        if "mce_missing" in corruptions:
            typer.echo(f"{name}: no mCE by AlexNet: {corruptions['mce_missing']}.")
    lost = sum(len(entry["unreadable"]) for entry in found.record["conditions"])
    if lost:
        typer.echo(f"{lost} pictures could not be read and were left out; evaluation.json names them.")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"severities are whole numbers with commas between, such as 1,3,5, got {text!r}") from None


def _fraction(option: str, text: str) -> float:
    """A number, or one over another."""
    above, slash, below = text.partition("/")
    try:
        return float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{option} takes a number such as 0.03 or 8/255, got {text!r}") from None
