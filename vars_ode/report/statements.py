"""Sentences on the results of a study, each made from the numbers.

A difference *exceeds the spread over seeds* if it is larger than both standard deviations and the ranges of the two
attentions over seeds do not overlap. That describes the runs that were made and is no significance test: `chance` gives
the probability of such a difference between two equal attentions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from vars_ode.statistics import Spread, verdict
from vars_ode.study.records import BASELINE, CLEAN, Results, SolverPoint

DASH = "\N{EN DASH}"  # stands for "not measured"
NUM_CLASSES = 10  # Fashion-MNIST


def percent(spread: Spread) -> str:
    """ "80.3 ± 0.5" in percent; without the deviation if there is one seed."""
    if not spread.count:
        return DASH
    mean = f"{100 * spread.mean:.1f}"
    return mean if spread.deviation is None else f"{mean} ± {100 * spread.deviation:.1f}"


def plain(value: float, digits: int = 1) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else DASH


def seeds_text(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def listing(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def comparison(variant: str, measure: str, ours: Spread, theirs: Spread) -> str:
    """One sentence on one measure, in the same words whichever is ahead."""
    kind = verdict(ours, theirs)
    if kind == "missing":
        return f"{measure}: not measured for both {variant} and {BASELINE}."
    points = 100 * (ours.mean - theirs.mean)
    side = "level with" if abs(points) < 0.05 else f"{abs(points):.1f} points {'ahead of' if points > 0 else 'behind'}"
    numbers = f"{percent(ours)} % against {percent(theirs)} %, {_counts(ours, theirs)}"
    ends = {
        "ahead": "more than the spread over seeds.",
        "behind": "more than the spread over seeds.",
        "within": "within the spread over seeds: these runs cannot tell the two apart.",
        "single": "but with one seed no spread can be given: the difference may be chance.",
    }
    chance_level = 1 / NUM_CLASSES
    floor = (
        " Both are at or below chance (10 %), so this measure says little."
        if max(ours.mean, theirs.mean) <= chance_level
        else ""
    )
    return f"{measure}: {variant} is {side} {BASELINE} ({numbers}), {ends[kind]}{floor}"


def _counts(ours: Spread, theirs: Spread) -> str:
    same = ours.count == theirs.count
    return f"{seeds_text(ours.count)} each" if same else f"{ours.count} against {theirs.count} seeds"


def short_answer(results: Results) -> str:
    """Which attentions are ahead of the baseline on corrupted images."""
    variants, conditions = results.variants, results.corrupted_conditions
    if not variants or BASELINE not in results.attentions:
        return f"Nothing can be compared: that takes {BASELINE} and another attention."
    if not conditions:
        return "Nothing can be said about corrupted images: no corruption was measured."
    theirs = results.spread(BASELINE, conditions)
    kinds: dict[str, list[str]] = {}
    for variant in variants:
        ours = results.spread(variant, conditions)
        points = f" ({100 * (ours.mean - theirs.mean):+.1f} points)" if ours.count and theirs.count else ""
        kinds.setdefault(verdict(ours, theirs), []).append(variant + points)
    texts = {
        "ahead": f"ahead of {BASELINE} by more than the spread over seeds: {{}}",
        "behind": f"behind {BASELINE} by more than the spread over seeds: {{}}",
        "within": f"not to be told apart from {BASELINE}, as the difference lies within the spread over seeds: {{}}",
        "single": "not judged, as with one seed no spread can be given: {}",
        "missing": "not judged, as measurements are missing: {}",
    }
    return "On corrupted images, " + "; ".join(texts[k].format(listing(kinds[k])) for k in texts if k in kinds) + "."


def variant_statements(results: Results, variant: str) -> tuple[str, list[str]]:
    """A one-line balance for a variant, and a sentence per measure."""
    kinds: dict[str, list[str]] = {}
    sentences = []
    for measure, conditions in results.measures().items():
        ours, theirs = results.spread(variant, conditions), results.spread(BASELINE, conditions)
        kinds.setdefault(verdict(ours, theirs), []).append(measure)
        sentences.append(comparison(variant, measure[0].upper() + measure[1:], ours, theirs))
    texts = {
        "ahead": "ahead of softmax on {}",
        "behind": "behind softmax on {}",
        "within": "within the spread over seeds on {}",
        "single": "one seed, so not judged, on {}",
        "missing": "not comparable on {}",
    }
    balance = "; ".join(texts[kind].format(listing(kinds[kind])) for kind in texts if kind in kinds)
    extra: list[Callable[[Results, str], str]] = [loss_under_corruption, size_and_time]
    return f"{variant}: {balance}.", sentences + [text for text in (make(results, variant) for make in extra) if text]


def loss_under_corruption(results: Results, variant: str) -> str:
    """The accuracy that each loses from clean to corrupted images: leading on both is not yet robustness."""
    drops = []
    for name in (variant, BASELINE):
        clean, corrupted = results.by_seed(name, [CLEAN]), results.by_seed(name, results.corrupted_conditions)
        drops.append(Spread.of(clean[seed] - corrupted[seed] for seed in clean if seed in corrupted))
    if not all(drop.count for drop in drops):
        return ""
    return (
        f"From clean to corrupted images {variant} loses {percent(drops[0])} points "
        f"and {BASELINE} {percent(drops[1])} points."
    )


def size_and_time(results: Results, variant: str) -> str:
    """Parameters and time beside the baseline's."""
    parts = []
    sizes = parameters(results, variant), parameters(results, BASELINE)
    if sizes[0] and sizes[1]:
        change = 100 * (sizes[0] / sizes[1] - 1)
        more = "more" if change > 0 else "fewer"
        parts.append("as many parameters" if abs(change) < 0.05 else f"{abs(change):.1f} % {more} parameters")
    seconds = train_seconds(results, variant) / train_seconds(results, BASELINE)
    if math.isfinite(seconds):
        parts.append(f"{seconds:.1f} times the training time")
    times = [Spread.of(results.by_seed(a, [CLEAN], None, "milliseconds").values()).mean for a in (variant, BASELINE)]
    if times[0] > 0 and times[1] > 0:
        parts.append(f"{times[0] / times[1]:.1f} times the forward time per image")
    return f"{variant} has or takes, relative to {BASELINE}: {listing(parts)}." if parts else ""


def parameters(results: Results, attention: str) -> int | None:
    sizes = [run.parameters for key, run in results.runs.items() if key[0] == attention and run.parameters]
    return sizes[0] if sizes else None


def train_seconds(results: Results, attention: str) -> float:
    seconds = [run.train_seconds for key, run in results.runs.items() if key[0] == attention]
    finite = [value for value in seconds if math.isfinite(value) and value > 0]
    return float(np.mean(finite)) if finite else math.nan


def chance(results: Results) -> str:
    """The probability that two equal attentions get ranges that do not overlap: 2 / C(n + m, n)."""
    counts = [len(results.seeds(name)) for name in results.attentions]
    if BASELINE not in results.attentions or len(counts) < 2 or min(counts) < 2:
        return ""
    ours, theirs = min(counts[1:]), counts[0]
    comparisons = len(results.variants) * len(results.measures())
    return (
        f"With {ours} and {theirs} seeds, two equal attentions would differ by more than the spread by chance in up to "
        f"one of {math.comb(ours + theirs, ours) / 2:.0f} comparisons, and this page makes {comparisons}."
    )


def solver_statements(results: Results, attention: str) -> list[str]:
    """How the accuracy of trained models changes with the solver, seed by seed, since the weights are the same."""
    sentences = []
    points = results.sweep(attention)
    for column in ("clean", "corrupted"):
        here = [point for point in points if point.column == column]
        trained = next((point for point in here if point.trained), None)
        others = [point for point in here if not point.trained]
        if trained is None or not others:
            continue
        ranked = sorted(others, key=lambda point: point.accuracy.mean)
        start = (
            f"{attention}, {column} images: trained with {trained.solver} ({percent(trained.accuracy)} %"
            f"{_evaluations(trained)})."
        )
        best = "Best of the other solvers: " + _change(ranked[-1], trained)
        worst = " Worst: " + _change(ranked[0], trained) if len(ranked) > 1 else ""
        sentences.append(f"{start} {best}{worst}{_dial(here)}")
    return sentences


def _dial(points: list[SolverPoint]) -> str:
    """How wide the accuracy spreads over the solves, and which is the cheapest within two points of the best."""
    stable = [point for point in points if point.stable and point.accuracy.count]
    if len(stable) < 3:
        return ""
    best = max(point.accuracy.mean for point in stable)
    width = 100 * (best - min(point.accuracy.mean for point in stable))
    near = [point for point in stable if point.accuracy.mean >= best - 0.02 and math.isfinite(point.evaluations)]
    if not near:
        return ""
    cheapest = min(near, key=lambda point: point.evaluations)
    return (
        f" Over all {len(stable)} solves the accuracy spreads by {width:.1f} points; the cheapest within 2 points of "
        f"the best is {cheapest.solver}{_evaluations(cheapest)}."
    )


def _evaluations(point: SolverPoint) -> str:
    if not math.isfinite(point.evaluations):
        return ""
    return f", {point.evaluations:.3g} evaluation{'' if point.evaluations == 1 else 's'}"


def _change(point: SolverPoint, trained: SolverPoint) -> str:
    differences = [point.by_seed[seed] - trained.by_seed[seed] for seed in point.by_seed if seed in trained.by_seed]
    text = f"{point.solver} ({percent(point.accuracy)} %{_evaluations(point)})"
    if not differences:
        return text + ", measured on other seeds."
    mean = float(np.mean(differences))
    agreeing = sum(difference * mean > 0 for difference in differences)
    if abs(100 * mean) < 0.05:
        return f"{text}, a change of 0.0 points."
    same = f", {'up' if mean > 0 else 'down'} in {agreeing} of {seeds_text(len(differences))}"
    return f"{text}, a change of {100 * mean:+.1f} points{same}."


def missing_pieces(results: Results) -> list[str]:
    """What the report cannot show, in sentences."""
    names = results.attentions
    untraced = [name for name in results.variants if results.trace(name) is None]  # reading a trace may add a note
    pieces = list(results.notes)
    if names and BASELINE not in names:
        pieces.append(f"There is no {BASELINE} run, so nothing can be compared with {BASELINE} attention.")
    if names and not results.variants:
        pieces.append(f"There are only {BASELINE} runs: no VARS model was trained.")
    single = [name for name in names if len(results.seeds(name)) == 1]
    if single:
        pieces.append(f"One seed only for {listing(single)}: no spread over seeds can be given for it.")
    for measure, conditions in results.measures().items():
        for name in names:
            lacking = sorted(set(results.seeds(name)) - set(results.by_seed(name, conditions)))
            if lacking:
                seeds = listing([str(seed) for seed in lacking])
                pieces.append(f"{name}, seed {seeds}: {measure} incomplete, so not in that mean.")
    present = results.measures()
    absent = [m for m in ("clean images", "mean of corruptions", "FGSM", "PGD") if m not in present or not names]
    if names and absent:
        pieces.append(f"Not measured for any model: {listing(absent)}.")
    unswept = [name for name in results.variants if not results.sweep(name)]
    pieces += [f"{name}: no solver other than the trained one was measured." for name in unswept]
    pieces += [
        f"{attention}, seed {listing([str(seed) for seed in seeds])}: {solver} diverged, so no accuracy is given there."
        for (attention, solver), seeds in results.diverged().items()
    ]
    pieces += [f"{name}: no trace of the solve was stored." for name in untraced]
    return pieces + _diverged(results)


def _diverged(results: Results) -> list[str]:
    return [
        f"The training loss of {run.attention}, seed {run.seed}, did not stay finite."
        for run in results.runs.values()
        if any("loss" in epoch and not math.isfinite(epoch["loss"]) for epoch in run.history)
    ]


def solver_warnings(results: Results) -> list[str]:
    """What the solvers warned of during training and measurement, with the number of runs."""
    sentences = []
    for message, by_attention in results.warnings().items():
        runs = [
            f"{attention} in {len(seeds)} of {len(results.seeds(attention))} runs"
            for attention, seeds in by_attention.items()
        ]
        sentences.append(f"{listing(runs)}: {message}")
    return sentences


def solve_rows(results: Results) -> list[list[str]]:
    """A line for each attention and layer on the solves of its trainings: steps, residual, active codes, failures."""
    rows = []
    for name, by_layer in _solves_by_layer(results).items():
        for layer, found in by_layer.items():
            last = max(row["epoch"] for row in found)
            end = [row for row in found if row["epoch"] == last]
            steps, residual, active = (_mean(end, key) for key in ("steps", "residual", "active"))
            failed, of = (int(sum(row[key] for row in found)) for key in ("failures", "solves"))
            texts = plain(steps), f"{residual:.2g}", plain(100 * active), f"{failed:,} of {of:,}"
            rows.append([name, layer, *texts])
    return rows


def activity(results: Results) -> list[str]:
    """The range over layers of the share of active codes, in a sentence per attention."""
    sentences = []
    for name, by_layer in _solves_by_layer(results).items():
        ends = [[row for row in found if row["epoch"] == max(r["epoch"] for r in found)] for found in by_layer.values()]
        shares = [100 * _mean(end, "active") for end in ends]
        sentences.append(
            f"{name}: {min(shares):.0f} to {max(shares):.0f} % of the codes are active, depending on the layer, and "
            f"{100 - sum(shares) / len(shares):.0f} % are zero on average."
        )
    return sentences


def _solves_by_layer(results: Results) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Attention -> layer -> the rows of all its seeds and epochs."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for run in results.runs.values():
        for row in run.solves:
            found.setdefault(run.attention, {}).setdefault(row["layer"], []).append(row)
    return found


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))
