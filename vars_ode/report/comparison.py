"""`write_comparison`: models side by side as one HTML file without external resources, with CSV files beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vars_ode.comparison import MEAN, Comparison, readable
from vars_ode.evaluation import Evaluation, read_evaluation
from vars_ode.files import write_atomically, write_csv
from vars_ode.report import page
from vars_ode.statistics import Spread

READING = (
    "Left: the mean over seeds, with a bar from the lowest seed to the highest. Right: the difference to {baseline} on "
    "the same images, with its 95 % interval; an interval that crosses zero is no difference that these data show."
)
METHOD = (
    "A difference is that of the mean accuracies, in percentage points. Its interval is the percentile bootstrap over "
    "seeds and images (2,000 resamples): both are drawn with replacement, images together for both models, seeds "
    "together where both have as many. p is the two-sided bootstrap p-value of no difference, at least 1/2,000, and p "
    "(Holm) the same corrected for all the differences on this page."
)


def write_comparison(comparison: Comparison, folder: Path, facts: Mapping[str, str] | None = None) -> Path:
    """Write report.html, accuracies.csv, differences.csv and comparison.png into a folder; the page's path.

    Args:
        comparison: the models.
        folder: made where it is not there.
        facts: what else to tell about how they were measured, by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    comparison.to_csv(folder / "accuracies.csv")
    write_csv(folder / "differences.csv", comparison.difference_rows())
    picture = folder / "comparison.png"
    comparison.plot().savefig(picture, dpi=150)
    sections = {
        "In short": page.bullets(comparison.findings()) or page.paragraph("One model alone: see the table."),
        "Accuracies": _accuracies(comparison),
        "Plot": page.figure("Accuracy by measure", picture, READING.format(baseline=comparison.baseline)),
        "Differences": _differences(comparison),
        "How it was measured": page.definitions(_facts(comparison, facts or {})),
    }
    names = ", ".join(comparison.runs)
    text = page.page(f"Comparison: {names}", "Accuracy on the same images", sections)
    target = folder / "report.html"
    write_atomically(target, lambda path: path.write_text(text, encoding="utf-8"))
    return target


def evaluated(runs: Sequence[str]) -> dict[str, list[Evaluation]]:
    """Evaluations by name, each a seed, out of FOLDER or NAME=FOLDER.

    Raises:
        ValueError: a folder that holds no evaluation.
    """
    found: dict[str, list[Evaluation]] = {}
    for run in runs:
        name, equals, folder = run.rpartition("=")
        evaluation = read_evaluation(folder if equals else run)
        found.setdefault(name or str(evaluation.record["model"]["name"]), []).append(evaluation)
    return found


def facts_of(found: Mapping[str, Sequence[Evaluation]]) -> dict[str, str]:
    """How evaluated models were measured, for the page."""
    first = next(iter(found.values()))[0].record
    facts = {"Data": str(first["shared"]["data"])}
    for name, seeds in found.items():
        facts[f"Solve of {name}"] = "; ".join(dict.fromkeys(str(e.record["model"]["solve"]) for e in seeds))
        errors = [text for e in seeds for text in _corruption_errors(e)]
        if errors:
            facts[f"Corruption errors of {name}"] = "; ".join(errors)
        warnings = [text for e in seeds for text in (e.summary.get("masking") or {}).get("warnings", [])]
        if warnings:
            facts[f"Warnings of {name}"] = " ".join(dict.fromkeys(warnings))
    facts["Commands"] = "; ".join(str(e.record["command"]) for seeds in found.values() for e in seeds)
    return facts


def _corruption_errors(evaluation: Evaluation) -> list[str]:
    """mCE by AlexNet's errors, where it is defined."""
    return [
        f"mCE {found['mce']:.1f} on {name}"
        + (f", relative {found['relative_mce']:.1f}" if "relative_mce" in found else "")
        for name, found in evaluation.summary["corruptions"].items()
        if "mce" in found
    ]


def _accuracies(comparison: Comparison) -> str:
    names = list(comparison.runs)
    rows = [
        [readable(measure), *(_spread(comparison.accuracy(name, measure)) for name in names)]
        for measure in comparison.measures
    ]
    caption = "Accuracy in percent: mean over seeds, and the standard deviation over them in brackets."
    return page.table(["measure", *names], rows, caption)


def _differences(comparison: Comparison) -> str:
    rows = [
        [
            f"{row['name']}, {readable(row['measure'])}",
            f"{row['difference']:+.1f}",
            f"{row['low']:+.1f} to {row['high']:+.1f}",
            f"{row['p']:.3g}",
            f"{row['p_holm']:.3g}",
        ]
        for row in comparison.difference_rows()
    ]
    if not rows:
        return page.paragraph("There is nothing to compare one model with.")
    headings = ["", f"points over {comparison.baseline}", "95 % interval", "p", "p (Holm)"]
    return page.table(headings, rows) + page.paragraph(METHOD)


def _facts(comparison: Comparison, facts: Mapping[str, str]) -> dict[str, str]:
    first = next(iter(comparison.runs.values()))[0]
    images = sorted({len(outcome) for outcome in first.values()})
    conditions = [f"{name} at {severity}" if severity else name for name, severity in comparison.conditions]
    found = {
        "Images": ", ".join(map(str, images)) + " per condition",
        "Seeds": ", ".join(f"{name}: {len(seeds)}" for name, seeds in comparison.runs.items()),
        "Conditions": ", ".join(conditions),
    }
    if MEAN in comparison.measures:
        found[readable(MEAN).capitalize()] = (
            f"the mean over {len(comparison.measures[MEAN])} corruptions and severities"
        )
    return {**found, **facts}


def _spread(spread: Spread) -> str:
    deviation = "" if spread.deviation is None else f" ({100 * spread.deviation:.1f})"
    return f"{100 * spread.mean:.1f}{deviation}"
