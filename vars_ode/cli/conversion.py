"""`vars-ode convert` and `vars-ode models`."""

from pathlib import Path
from typing import Annotated

import typer

from vars_ode.cli.common import refusals


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

    with refusals("convert", kinds=(ValueError, OSError, RuntimeError)):
        built = create_with_weights(model, weights, pretrained, num_classes)
        report = convert_attention(built, attention, match)
        save_pretrained(built, out)
    typer.echo(f"{report}\nSaved: {out}")


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
