"""What the commands share: errors as sentences, and how they were called."""

import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer


@contextmanager
def refusals(
    command: str,
    interrupted: Callable[[], str] = lambda: "Stopped.",
    kinds: tuple[type[Exception], ...] = (ValueError, OSError),
) -> Iterator[None]:
    """Errors that are the user's or the machine's: their sentence, without a traceback.

    Args:
        command: its name.
        interrupted: what to say after Ctrl-C, about the state of the results.
        kinds: which errors; RuntimeError too where models of others are run, whose errors are of that kind.
    """
    try:
        yield
    except typer.Exit:  # which is a RuntimeError
        raise
    except KeyboardInterrupt:
        typer.echo(f"\n{interrupted()}", err=True)
        raise typer.Exit(130) from None
    except kinds as error:
        typer.echo(f"vars-ode {command}: {error}", err=True)
        raise typer.Exit(2) from None


@contextmanager
def told() -> Iterator[None]:
    """What the library logs goes to stderr, while the command runs."""
    logger, handler = logging.getLogger("vars_ode"), logging.StreamHandler()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def command_line() -> str:
    """How to call this command again."""
    program = os.path.basename(sys.argv[0])
    return shlex.join(["vars-ode" if program == "__main__.py" else program, *sys.argv[1:]])
