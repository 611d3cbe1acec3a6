"""The results of a study as tables of text."""

from collections.abc import Sequence

from vars_ode.models import parse_solves
from vars_ode.study.records import CLEAN, Condition, Results


def dial_table(results: Results) -> str:
    """Accuracy of every model under every solve, in Markdown: clean / mean of the corruptions, in percent.

    A cell is the mean over seeds; below the header's names, "-" stands for a solve that is refused, or that gave no
    finite answer for some image. The solve of the training is in its own column like the others.
    """
    names = [name for name in results.attentions if results.sweep(name)]
    if not names:
        return "No model was measured under another solve than that of its training.\n"
    solves = _solves(results, names)
    rows = [["model", *solves], ["---", *["---:"] * len(solves)]]
    for name in results.attentions:
        conditions = results.sweep_conditions(names[0])
        cells = [accuracy_cell(results, name, conditions, solve if name in names else None) for solve in solves]
        rows.append([name, *(cells if name in names else [cells[0], *[""] * (len(solves) - 1)])])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _solves(results: Results, names: Sequence[str]) -> list[str]:
    """The solves that were measured, in the order of the plan's sweep."""
    measured = dict.fromkeys(key[2] for key in results.rows if key[0] in names)
    planned = [solve.label for solve in parse_solves(str(results.settings.get("sweep") or "euler@5"))]
    return sorted(measured, key=lambda solve: planned.index(solve) if solve in planned else -1)


def accuracy_cell(results: Results, name: str, corrupted: Sequence[Condition], solve: str | None) -> str:
    """Clean and mean corruption accuracy under a solve, in percent; "-" where there is none."""
    accuracies = [results.spread(name, conditions, solve) for conditions in ([CLEAN], corrupted)]
    return " / ".join(f"{100 * spread.mean:.1f}" if spread.count else "-" for spread in accuracies)
