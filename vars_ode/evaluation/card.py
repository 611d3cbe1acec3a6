"""The measured table in the model card of a saved model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vars_ode.checkpoints import folder
from vars_ode.files import write_atomically

START, END = "<!-- evaluation: written by vars-ode evaluate -->", "<!-- end of evaluation -->"


def fill_card(place: Path, record: Mapping[str, Any]) -> bool:
    """Put what was measured into the README.md of a model's folder; the rest of it stays as it is.

    A section that was written by an earlier evaluation is replaced, otherwise one is added at the end.

    Returns:
        whether there is such a file.
    """
    path = place / folder.CARD
    if not path.is_file() or not (place / folder.WEIGHTS).is_file():
        return False
    text, section = path.read_text(encoding="utf-8"), card_section(record)
    before, start, rest = text.partition(START)
    if start and END in rest:
        made = before + section + rest.partition(END)[2].removeprefix("\n")
    else:
        made = f"{text.rstrip()}\n\n{section}"
    write_atomically(path, lambda target: target.write_text(made, encoding="utf-8"))
    return True


def card_section(record: Mapping[str, Any]) -> str:
    """The section: clean, corrupted and attacked accuracy, and how it was measured."""
    settings, summary = record["settings"], record["summary"]
    lines = [f"| {what} | {value} |" for what, value in summary_rows(summary)]
    images = max((entry["images"] for entry in record["conditions"]), default=0)
    how = f"Data: `{Path(settings['data']).name}`, up to {images} images per condition; seed {settings['seed']}. "
    balls = [entry["settings"] for entry in record["conditions"] if "eps" in entry["settings"]]
    told = list(dict.fromkeys(f"{ball['norm']} ball of {ball['eps']:.4g}" for ball in balls))
    how += f"Attacks: {', '.join(told)}. " if told else ""
    how += f"Solve: {record['model']['solve']}. Measured with vars-ode {record['environment']['vars-ode']}."
    warned = [f"> {text}" for text in (summary["masking"] or {}).get("warnings", [])]
    body = ["## Measured accuracy", "", "| condition | measured |", "|---|---|", *lines, "", how, *warned]
    return "\n".join([START, *body, END, ""])


def summary_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was measured, in words and percent."""
    rows = []
    if summary["clean_accuracy"] is not None:
        rows.append(("clean", _percent(summary["clean_accuracy"])))
    rows += [(name, _percent(value)) for name, value in summary["accuracy"].items()]
    for benchmark, found in summary["corruptions"].items():
        made = benchmark == "imagenet-c" and found["images"] == "made"
        name = f"{benchmark} made of the clean images" if made else benchmark
        rows.append((f"{name}, mean over corruptions", _percent(found["mean_accuracy"])))
        rows += [(f"{name}, {what}", f"{found[key]:.1f}") for key, what in _MCE.items() if key in found]
    for name, found in summary.get("baseline", {}).items():
        rows += [(f"{name}, {what} by the baseline", f"{found[key]:.1f}") for key, what in _MCE.items() if key in found]
    return rows


_MCE = {"mce": "mCE", "relative_mce": "relative mCE"}


def _percent(part: float) -> str:
    return f"{100 * part:.1f} %"
