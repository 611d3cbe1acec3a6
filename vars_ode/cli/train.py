"""`vars-ode train`. Its options are the fields of `TrainingConfig` and `Recipe`, with what their docstrings say."""

import inspect
import types
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer
import yaml
from typer.core import TyperCommand

from vars_ode.cli.common import command_line, refusals, told
from vars_ode.training.config import TrainingConfig, described, read_config
from vars_ode.training.recipe import Recipe

STOPPED = 75  # EX_TEMPFAIL: the state is saved, and the same command goes on
_SHORT = {"batch_size": "-b", "workers": "-j"}


class SeveralValues(TyperCommand):
    """Options of lists take their values as in timm's script: `--model-kwargs embed_dim=64 depth=3`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        several = [option for option in self.params if getattr(option, "multiple", False)]
        names = {name for option in several for name in option.opts}
        expanded: list[str] = []
        current: str | None = None
        for token in args:
            if token.startswith("-") and not _is_number(token):
                current = token if token in names else None
                expanded += [] if current else [token]
            else:
                expanded += [token] if current is None else [current, token]
        return super().parse_args(ctx, expanded)


def train(
    out: Annotated[Path, typer.Option(help="Results folder: new, or of this training.")],
    config: Annotated[
        Path | None, typer.Option(help="Settings by name in a YAML file; options here come before them.")
    ] = None,
    **settings: Any,
) -> None:
    """Train a model and save it: any model, attention, solver, adjoint and horizon, on a folder of pictures.

    Flags carry the names of timm's training script. By default the recipe is the published one where there are 100,000
    training images or more, and a light one below. Started by torchrun or `accelerate launch` it trains in several
    processes. When it is interrupted, by whatever means, the same command goes on from the last checkpoint, to the same
    weights. SIGTERM and Ctrl-C save first; the exit status is then 75 and 130.

    Writes model.safetensors with config.json, best/ (by held-out images), ema/, log.csv, solves.csv, summary.json,
    training.yaml (all settings, for --config) and checkpoints/ into the results folder.
    """
    import signal

    from vars_ode.training.command import train as run
    from vars_ode.training.loop import StoppedError

    given = {name: _value(name, value) for name, value in settings.items() if value not in (None, [], ())}
    with told(), refusals("train", kinds=(ValueError, OSError, RuntimeError)):
        received: list[int] = []
        try:
            trained = run({**(read_config(config) if config else {}), **given}, out, command_line(), received)
        except StoppedError as stopped:
            typer.echo(f"vars-ode train: {stopped}; the same command goes on.", err=True)
            raise typer.Exit(130 if signal.SIGINT in received else STOPPED) from None
    for name, accuracy in trained.test.items():
        typer.echo(f"test accuracy, {name}: {100 * accuracy:.1f} %")
    typer.echo(f"Saved: {trained.folder}")


def _option(item: "Field[Any]", hint: Any, text: str) -> inspect.Parameter:
    """The option of one field."""
    kind = _kind(hint)
    flag = f"--{item.name.replace('_', '-')}"
    names = [flag, *([_SHORT[item.name]] if item.name in _SHORT else [])]
    if kind is bool and not item.name.startswith("no_"):
        names = [f"{flag}/--no-{flag[2:]}"]
    default = item.default if item.default is not MISSING else None
    shown = "" if default is None or isinstance(default, bool | tuple) else f"  [default: {default}]"
    option = typer.Option(*names, help=text + shown, show_default=False)
    return inspect.Parameter(
        item.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _kind(hint: Any) -> Any:
    """The type of the option of a field's type."""
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (part for part in get_args(hint) if part is not type(None))
    if get_origin(hint) is tuple:
        return list[float] if get_args(hint)[0] is float else list[str]
    if get_origin(hint) is dict:
        return list[str]
    return hint if hint in (bool, int, float, str) else str  # choices and horizons are read from strings


def _value(name: str, value: Any) -> Any:
    """An option's value as the field takes it."""
    if name.endswith("kwargs"):
        return dict(_pair(name, text) for text in value)
    if isinstance(value, list):
        return tuple(value)
    return None if value == "none" else value


def _pair(name: str, text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"--{name.replace('_', '-')} takes NAME=VALUE, got {text!r}")
    return key, yaml.safe_load(value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _describe() -> None:
    """Give `train` the signature that typer reads: the fields in place of **settings."""
    out, config, _ = inspect.signature(train).parameters.values()
    parameters = [out.replace(kind=out.KEYWORD_ONLY), config.replace(kind=config.KEYWORD_ONLY)]
    for cls in (TrainingConfig, Recipe):
        hints, texts = get_type_hints(cls), described(cls)
        chosen = [item for item in fields(cls) if item.name != "recipe"]
        parameters += [_option(item, hints[item.name], texts[item.name]) for item in chosen]
    train.__signature__ = inspect.Signature(parameters, return_annotation=None)  # type: ignore[attr-defined]
    train.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}


_describe()
