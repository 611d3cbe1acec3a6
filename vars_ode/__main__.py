"""`python -m vars_ode` is `vars-ode`."""

from vars_ode.cli import app

app(prog_name="vars-ode")
