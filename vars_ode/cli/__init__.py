"""`vars-ode`: the command line. Each command imports what it needs when it is called, so that help comes at once."""

import signal
import threading
from typing import Annotated

import typer

from vars_ode._version import __version__
from vars_ode.cli.bench import bench
from vars_ode.cli.convergence import convergence
from vars_ode.cli.conversion import convert, models
from vars_ode.cli.dial import dial
from vars_ode.cli.evaluate import evaluate
from vars_ode.cli.info import info
from vars_ode.cli.report import report
from vars_ode.cli.study import demo, study
from vars_ode.cli.train import SeveralValues, train

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for command in (info, demo, study, train, evaluate, report, dial, convergence, convert, models, bench):
    app.command(cls=SeveralValues if command is train else None)(command)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"vars-ode {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Visual attention from recurrent sparse reconstruction (VARS) as an ODE with pluggable solvers."""
    if callable(signal.getsignal(signal.SIGINT)) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # from here on Ctrl-C is the command's own
