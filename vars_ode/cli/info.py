"""`vars-ode info`."""

import typer


def info() -> None:
    """Print versions, machine, devices and threads: for bug reports, and to read results beside."""
    from vars_ode.environment import environment

    found = environment()
    width = max(map(len, found))
    for name, value in found.items():
        typer.echo(f"{name.ljust(width)}  {value}")
