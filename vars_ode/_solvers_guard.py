"""`solvers` is a common name for a module: make sure that importing it finds ours."""

import importlib.util
import sys
from pathlib import Path


def check_solvers() -> None:
    """Raise an ImportError that names the file in the way, unless `solvers` is the package installed with vars_ode."""
    loaded = sys.modules.get("solvers")
    if loaded is not None:
        found = getattr(loaded, "__file__", None)
    else:
        spec = importlib.util.find_spec("solvers")
        found = spec.origin if spec else None
    ours = Path(__file__).resolve().parent.parent / "solvers" / "__init__.py"
    if found is not None and Path(found).resolve() == ours:
        return
    if found is None:
        raise ImportError(f"vars_ode needs its package `solvers`, expected at {ours}; reinstall vars-ode")
    raise ImportError(
        f"`import solvers` finds {found} instead of the package that belongs to vars_ode ({ours}). Rename that "
        "file, or take its folder off the import path"
    )
