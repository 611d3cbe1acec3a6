"""Runs the cells of a notebook in this process, by the IPython that is inside of Jupyter's kernels."""

import os

import matplotlib
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from matplotlib_inline.backend_inline import configure_inline_support
from traitlets.config import Config


def run_cells(sources: list[str], folder: str, environment: dict[str, str]) -> list[set[str]]:
    """Run all, in `folder`; the kinds of what each displays, such as image/png. The first error is raised.

    To be called once per process: it is left as the notebook leaves it.
    """
    os.environ.update(environment, IPYTHONDIR=folder)
    os.chdir(folder)
    torch.set_num_threads(1)
    backend = "module://matplotlib_inline.backend_inline"
    matplotlib.use(backend)
    config = Config()
    config.HistoryManager.enabled = False
    shell = InteractiveShell.instance(config=config)
    configure_inline_support(shell, backend)
    displayed = []
    for source in sources:
        with shell.display_trap, capture_output() as captured:  # the trap first, or the cell sets its own
            shell.run_cell(source).raise_error()
        displayed.append({kind for output in captured.outputs for kind in output.data})
    return displayed
