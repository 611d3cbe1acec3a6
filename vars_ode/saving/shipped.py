"""The trained models in the package, by name."""

from __future__ import annotations

import os
from pathlib import Path

_FOLDER = Path(__file__).parents[1] / "pretrained"


def list_pretrained() -> tuple[str, ...]:
    """The trained models that come with the package, for `load_pretrained`, such as "fashion-mnist/vars-sd-factor".

    They are small, and there to look at: `vars_ode.analysis`, `vars-ode dial` and `vars-ode convergence` take their
    names. What was measured of each stands in its model card, README.md in `pretrained_folder(name)`.
    """
    return tuple(sorted(path.parent.relative_to(_FOLDER).as_posix() for path in _FOLDER.glob("*/*/config.json")))


def pretrained_folder(name: str | os.PathLike[str]) -> Path | None:
    """The folder of a model of `list_pretrained`; None for another name."""
    return _FOLDER / name if os.fspath(name) in list_pretrained() else None
