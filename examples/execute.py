"""Run the example notebooks and keep their outputs: all of them, or those that are named.

    python examples/execute.py                         # all
    python examples/execute.py quickstart convergence  # these two

Each is run from top to bottom in a fresh kernel, on one thread and in its own folder, as Jupyter would. What is written
holds sources and outputs, but neither times nor anything of the machine, so that a second run changes little. A
notebook that fails is left as it was, and the others are run.
"""

import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

EXAMPLES = Path(__file__).parent
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
FULL_RUN = 600.0  # seconds, a limit against runs that hang

# A library below timm reports in every notebook that it would show progress bars as widgets, which nobody asked for.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore:IProgress not found"}


def execute(notebook: NotebookNode, folder: Path, seconds: float) -> NotebookNode:
    """Run all cells, in place; a `CellTimeoutError` where the whole notebook takes longer than `seconds`."""
    started = time.monotonic()

    def left(_: NotebookNode) -> float:
        return max(1.0, seconds - (time.monotonic() - started))

    NotebookClient(
        notebook,
        timeout_func=left,
        kernel_name=KERNEL["name"],
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    ).execute()
    return notebook


def clean(notebook: NotebookNode) -> NotebookNode:
    """Keep of the metadata what says how to run it, in place: the kernel, the language and the tags of cells."""
    notebook.metadata = NotebookNode(kernelspec=KERNEL, language_info={"name": "python"})
    for cell in notebook.cells:
        cell.metadata = NotebookNode({key: cell.metadata[key] for key in ("tags",) if cell.metadata.get(key)})
    return notebook


def main(names: list[str]) -> None:
    paths = [EXAMPLES / f"{name.removesuffix('.ipynb')}.ipynb" for name in names] or sorted(EXAMPLES.glob("*.ipynb"))
    unknown = [path.stem for path in paths if not path.is_file()]
    if unknown:
        known = ", ".join(sorted(path.stem for path in EXAMPLES.glob("*.ipynb")))
        sys.exit(f"there is no notebook {', '.join(unknown)} in {EXAMPLES}; there are {known}")
    os.environ.update(ENVIRONMENT)
    failed = []
    for path in paths:
        print(path.name, end=" ", flush=True)
        started = time.monotonic()
        try:
            notebook = execute(nbformat.read(path, as_version=4), path.parent, FULL_RUN)
        except (CellExecutionError, TimeoutError) as error:
            print(f"failed: {error}")
            failed.append(path.name)
            continue
        nbformat.write(clean(notebook), path)
        print(f"{time.monotonic() - started:.0f} s")
    if failed:
        sys.exit(f"{len(failed)} of {len(paths)} notebooks failed and are as they were: {', '.join(failed)}")


if __name__ == "__main__":
    main(sys.argv[1:])
