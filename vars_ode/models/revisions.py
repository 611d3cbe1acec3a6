"""The eras of the authors' code: sets of options that differ from the defaults of the layers."""

from collections.abc import Mapping
from typing import Any

import solvers
from vars_ode.models.attentions import NamedAttention

REVISIONS = ("paper", "learned", "corrected")


def revision_options(revision: str | None, attention: NamedAttention) -> Mapping[str, Any]:
    """The options that an era sets for an attention.

    Args:
        revision: None for the layer's own defaults. "paper" for the algorithm of the paper's time: soft threshold,
            features of unnormalised queries, Gershgorin's step bound. "learned" for the authors' later one: learned
            Gram factor, threshold and rate, gelu threshold, the same bound. "corrected", for "vars-s" alone: step bound
            and filters without the authors' slips, which are the layer's own defaults.
        attention: which.

    Raises:
        ValueError: an unknown era, or one without this attention.
    """
    if revision is None:
        return {}
    solvers.checks.one_of("revision", revision, REVISIONS)
    if revision == "corrected" and attention.name != "vars-s":
        raise ValueError(f'revision="corrected" is for attention="vars-s", got attention={attention.name!r}')
    if attention.name == "vars-s":
        return {"revision": "corrected" if revision == "corrected" else "paper"}
    if attention.name == "performer":
        return {"normalize_queries": revision == "learned"}
    if attention.options.get("dictionary") not in ("dynamic", "static+dynamic"):
        return {}
    era: dict[str, Any] = {"rate": "gershgorin", "normalize_queries": revision == "learned"}
    if revision == "learned":
        era["threshold"] = "gelu"
        if attention.options.get("learned", "factor") != "factor":
            raise ValueError(f'revision="learned" has the learned form "factor", got attention={attention.name!r}')
        era["learned"] = "factor"
    return era
