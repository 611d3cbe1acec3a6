"""`write_report`: the results of a study as one HTML file without external resources."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from vars_ode.data import DIGITS, EMBEDDED, FULL
from vars_ode.report import page
from vars_ode.report.plot_style import Plot
from vars_ode.report.plots import draw_plots
from vars_ode.report.statements import (
    DASH,
    activity,
    chance,
    listing,
    missing_pieces,
    parameters,
    percent,
    plain,
    seeds_text,
    short_answer,
    solve_rows,
    solver_statements,
    solver_warnings,
    train_seconds,
    variant_statements,
)
from vars_ode.statistics import Spread
from vars_ode.study.records import (
    BASELINE,
    Condition,
    Results,
    SolverPoint,
    in_capitals,
    number,
    read_results,
    readable,
)

TITLE = "Attention as sparse reconstruction: vision transformers compared"

GLOSSARY = {
    "Attractor network": "A recurrent network whose state converges to an equilibrium, the attractor. Here the state "
    "is the sparse code of an image's tokens, and the attractor the code that reconstructs them best.",
    "VARS": "Visual attention from recurrent sparse reconstruction (Shi et al., ICML 2022, arXiv 2204.10962): "
    "attention computed by such a network instead of a softmax.",
    "Templates": "The columns of the dictionary Phi by which the values V are reconstructed: functions of the input "
    "(vars-d), or those and learned ones (vars-sd).",
    "Learned forms": "A name without a suffix, such as vars-d, learns its projections (and templates) only. -factor "
    "learns a matrix K in the recurrence, K G K in place of the Gram G = Phi^T Phi, and scales of threshold and rate; "
    "its vector field has no energy and need not have an equilibrium. -coupling has K^T G K, with an energy; -monotone "
    "adds a rotation to that. -dictionary learns K in the templates, Phi K in place of Phi, and has an energy.",
    "Energy": "E(a) = 1/2|V - Phi a|^2 + lam|a|_1: the error of the reconstruction by the code a, plus a penalty on "
    "its size that makes it sparse. Plots leave out the constant 1/2|V|^2.",
    "Sparsity (lam)": "The weight lam of the penalty. The higher it is, the more entries of the code are exactly zero.",
    "Solver, solver step": "The network is a differential equation, and the solver the method that integrates "
    "it. euler@5 takes steps of Euler's method, of length 1, to the time 5. Fewer steps cost less and end farther from "
    "the equilibrium. euler@5/2 would take two longer steps to the same time. fixed_point, nesterov and "
    "douglas_rachford go on until the state hardly changes, for at most 200 steps.",
    "Horizon": "The time to which the equation is integrated. A model that was trained with a random horizon, drawn "
    "anew at every update, has learned to answer after any number of steps.",
    "single-step": "The limit in which VARS is kernel self-attention: one step from zero without sparsity. A model "
    "that is trained as VARS does not work there. It is not euler@1, which is one step of the trained network.",
    "Field evaluation": "One evaluation of the vector field, the right-hand side of the differential equation: the "
    "unit of a solver's cost. Softmax attention has none.",
    "Active codes": "The share of the code's entries that are not zero. The threshold of the solver makes the others "
    "exactly zero.",
    "Residual": "How fast the state still changes where the solver stops: zero at the equilibrium.",
    "Corruption, severity": "A change to the test images, such as noise or blur, and its strength.",
    "FGSM": "Fast gradient sign method: an attack that changes every pixel by a fixed small amount in the "
    "direction that raises the loss most.",
    "PGD": "Projected gradient descent: FGSM in several smaller steps from a random start, each kept within the "
    "allowed change, which makes it the stronger attack. Both "
    "follow the model's own gradient; where that gradient vanishes or is inaccurate, they overestimate robustness.",
    "Seed": "The number that fixes the random parts of a training. Training with several seeds shows how much of a "
    "difference is due to chance.",
}
DATA = {
    EMBEDDED: "Fashion-MNIST, 28 x 28 grey pictures of ten kinds of clothing",
    FULL: "Fashion-MNIST, 28 x 28 grey pictures of ten kinds of clothing",
    DIGITS: "scikit-learn's digits, handwritten ones of 16 x 16 grey values",
}


def write_report(folder: Path) -> Path:
    """Draw the plots into `folder/plots` and write `folder/report.html`; returns the report's path.

    The report names results that are missing. Only a folder that does not exist is an error.
    """
    folder = Path(folder)
    results = read_results(folder)
    plots = draw_plots(results, folder / "plots")
    sections = {
        "In short": _summary(results),
        "What was done": _introduction(results),
        "Headline numbers": _headline(results),
        "What the numbers say": _statements(results),
        "Plots, and how to read them": "\n".join(_figure(plot, path) for plot, path in plots),
        "Other solvers, without retraining": _solvers(results),
        "Every corruption": _corruptions(results),
        "What is missing": _missing(results),
        "The solves of the trainings": _solves(results),
        "Warnings of the solvers": _warnings(results),
        "Settings, versions, and how to reproduce": _settings(results),
        "Glossary": page.definitions(GLOSSARY),
    }
    started = results.details.get("started")
    command = "study" if results.settings.get("arms") else "demo"
    kicker = f"vars-ode {command}" + (f", started {started}" if started else "")
    path = folder / "report.html"
    path.write_text(page.page(TITLE, kicker, sections), encoding="utf-8")
    return path


def _scope(results: Results) -> str:
    counts = sorted({len(results.seeds(name)) for name in results.attentions})
    seeds = seeds_text(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    return f"One small data set, {seeds}; a demonstration, not a benchmark."


def _summary(results: Results) -> str:
    if not results.attentions:
        return page.paragraph("There are no results in this folder yet.", "answer")
    balances = [
        variant_statements(results, variant)[0] for variant in results.variants if BASELINE in results.attentions
    ]
    return page.paragraph(short_answer(results), "answer") + page.bullets(balances) + page.paragraph(_scope(results))


def _introduction(results: Results) -> str:
    question = (
        "The question: is a vision transformer more robust if its attention is computed by an attractor network that "
        "reconstructs its input sparsely (VARS), rather than by a softmax? And once such a network is trained, how "
        "much does its accuracy depend on the solver that integrates it?"
    )
    names = results.attentions
    tests = ["on clean images"]
    severities = sorted({condition.severity for condition in results.corrupted_conditions})
    if severities:
        levels = listing([str(severity) for severity in severities])
        tests.append(f"on images under corruptions of severity {levels}")
    if results.attacks:
        attacks = listing(sorted(in_capitals(attack.name) for attack in results.attacks))
        tests.append(f"against attacks that know the model: {attacks}{_attack_settings(results)}")
    apart = bool(results.settings.get("arms"))
    differing = "their attention, and in what the settings below say of each" if apart else "their attention alone"
    models = (
        f"Small vision transformers{f' ({listing(names)})' if names else ''} were trained on the same part of "
        f"{DATA.get(str(results.settings.get('data')), DATA[EMBEDDED])}. They differ in {differing}. "
        f"Each was then tested {'; '.join(tests)}."
    )
    if any(results.sweep(name) for name in results.variants):
        models += " Lastly the trained VARS models were tested again, without retraining, with other solvers."
    return page.paragraph(question) + page.paragraph(models)


def _attack_settings(results: Results) -> str:
    eps = number(results.settings.get("eps"))
    if not math.isfinite(eps):
        return ""
    text = f"each pixel, from 0 to 1, may change by {eps:.4g}, or {255 * eps:.3g}/255"
    steps, share = (number(results.settings.get(name)) for name in ("attack_steps", "attack_step"))
    if math.isfinite(steps * share) and any(attack.name == "pgd" for attack in results.attacks):
        text += f"; PGD takes {steps:g} steps of {share * eps:.3g} from a random start within that"
    return f" ({text})"


def _headline(results: Results) -> str:
    measures = results.measures()
    if not measures:
        return page.paragraph("Not available: no accuracies were measured.", "missing")
    names = {"clean images": "Clean (%)", "mean of corruptions": "Mean of corruptions (%)"}
    headings = [
        "Attention",
        "Seeds",
        "Parameters",
        *[names.get(m, f"{m} (%)") for m in measures],
        "Solver",
        "Training (s)",
    ]
    rows = []
    for name in results.attentions:
        count = len(results.seeds(name))
        size = parameters(results, name)
        solvers = dict.fromkeys(filter(None, (results.trained_solver(name, seed) for seed in results.seeds(name))))
        accuracies = [_with_count(results.spread(name, conditions), count) for conditions in measures.values()]
        known = [f"{size:,}" if size else DASH, *accuracies, ", ".join(solvers) or DASH]
        rows.append([name, str(count), *known, plain(train_seconds(results, name), 0)])
    caption = (
        "Accuracy on the test images: mean ± standard deviation over seeds, in percent. Without a ± there is only "
        "one seed. A mean over fewer seeds than the row's says so (n)."
    )
    return page.table(headings, rows, caption)


def _with_count(spread: Spread, expected: int) -> str:
    text = percent(spread)
    return text if spread.count in (0, expected) else f"{text} (n = {spread.count})"


def _statements(results: Results) -> str:
    if BASELINE not in results.attentions or not results.variants:
        return page.paragraph(
            f"Not available: a comparison needs {BASELINE} and at least one other attention.", "missing"
        )
    parts = [
        page.paragraph(
            "Points are percentage points of accuracy. A difference counts as more than the spread over seeds when "
            "it is larger than both standard deviations and the ranges over seeds do not overlap. " + chance(results)
        )
    ]
    for variant in results.variants:
        balance, sentences = variant_statements(results, variant)
        parts += [page.paragraph(balance), page.bullets(sentences)]
    return "\n".join(parts)


def _figure(plot: Plot, path: Path | None) -> str:
    if path is None:
        return page.paragraph(f"{plot.title}: not drawn. {plot.missing}", "missing")
    return page.figure(plot.title, path, plot.reading)


def _solvers(results: Results) -> str:
    rows, sentences = [], []
    for name in results.variants:
        points = results.sweep(name)
        sentences += solver_statements(results, name)
        for solver in dict.fromkeys(point.solver for point in points):
            here = [point for point in points if point.solver == solver]
            rows.append(_solver_row(here, len(results.seeds(name))))
        diverged = [solver for attention, solver in results.diverged() if attention == name]
        rows += [
            [name, solver, *2 * ["diverged"], *2 * [DASH]]
            for solver in diverged
            if solver not in {p.solver for p in points}
        ]
    if not rows:
        return page.paragraph("Not available: no solver other than those of the training was measured.", "missing")
    headings = ["Attention", "Solver", "Clean (%)", "Corrupted (%)", "Evaluations", "ms per image"]
    conditions = {
        f"{readable(condition.name)} (severity {condition.severity})": None
        for name in results.variants
        for condition in results.sweep_conditions(name)
    }
    corrupted = f"Corrupted: the mean of {listing(list(conditions))}. " if conditions else ""
    caption = (
        f"The same trained weights under each solver, mean ± standard deviation over seeds. {corrupted}Evaluations of "
        "the vector field are per layer and image, on clean images; milliseconds are for a forward pass of one image."
    )
    note = (
        "Seeds are compared in pairs here, since the weights of a seed are the same under every solver. Steps that are "
        "longer than is stable by theory are said so, and left out of the plot."
    )
    return page.table(headings, rows, caption, texts=2) + page.bullets(sentences) + page.paragraph(note)


def _solver_row(points: list[SolverPoint], seeds: int) -> list[str]:
    by_column = {point.column: point for point in points}
    columns = ("clean", "corrupted")
    accuracies = [_with_count(by_column[c].accuracy, seeds) if c in by_column else DASH for c in columns]
    cost = by_column.get("clean", points[0])
    solver = cost.solver + (" (training)" if cost.trained else "") + ("" if cost.stable else " (steps too long)")
    return [cost.attention, solver, *accuracies, plain(cost.evaluations), plain(cost.milliseconds, 3)]


def _corruptions(results: Results) -> str:
    severities = sorted({condition.severity for condition in results.corrupted_conditions})
    if not severities:
        return page.paragraph("Not available: no corruption was measured.", "missing")
    rows = []
    for corruption, conditions in results.corruptions.items():
        for name in results.attentions:
            accuracies = [percent(results.spread(name, [Condition(corruption, severity)])) for severity in severities]
            rows.append([readable(corruption), name, *accuracies, percent(results.spread(name, conditions))])
    headings = ["Corruption", "Attention", *[f"Severity {severity}" for severity in severities], "Mean"]
    return page.table(headings, rows, "Accuracy in percent, mean ± standard deviation over seeds.", texts=2)


def _missing(results: Results) -> str:
    pieces = missing_pieces(results)
    if results.warnings():
        pieces.append("The solvers warned: see below.")
    return (
        page.bullets(pieces)
        if pieces
        else page.paragraph("Nothing: every measurement that the report needs was found.")
    )


def _solves(results: Results) -> str:
    rows = solve_rows(results)
    if not rows:
        return page.paragraph("Not available: no run recorded the solves of its training.", "missing")
    headings = ["Attention", "Layer", "Steps", "Residual", "Active codes (%)", "Failures"]
    caption = (
        "Means over seeds. Steps: of the solves in the last epoch. Residual and active codes: of the solve that the "
        "model is set to, on some training images, with the final weights. Failures: solves in all epochs that did not "
        "reach what was asked for."
    )
    note = (
        "Active codes are the entries of the code that are not zero, so many of a head's templates times channels. "
        "The code of a solve that stops early is less sparse than that of the equilibrium, where most entries that are "
        "small come to be zero; a share near 100 % means that the attention is hardly a sparse one."
    )
    return page.table(headings, rows, caption, texts=2) + page.bullets(activity(results)) + page.paragraph(note)


def _warnings(results: Results) -> str:
    return page.bullets(solver_warnings(results)) or page.paragraph("No warning was recorded.")


def _settings(results: Results) -> str:
    parts = []
    command = results.details.get("command")
    if command:
        parts += [page.paragraph("This command repeats the study:"), f"<pre>{page.escape(str(command))}</pre>"]
    else:
        parts.append(page.paragraph("The command of this study was not stored.", "missing"))
    seconds = number(results.details.get("wall_seconds"))
    if math.isfinite(seconds):
        parts.append(
            page.paragraph(
                f"It took {seconds / 60:.1f} minutes. Times depend on the computer, and accuracies as well: a training "
                "amplifies the last bits of a float, which differ between processors. The same demo on two machines "
                "differed by up to 5 points in one attention."
            )
        )
    for heading, values in (("Setting", results.settings), ("Package", results.versions)):
        if values:
            rows = [[str(key), _value(value)] for key, value in values.items()]
            parts.append(page.table([heading, "Value"], rows, long=True))
    return "\n".join(parts)


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else DASH
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(item) for item in value) or DASH
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_value(item)}" for key, item in value.items()) or DASH
    return DASH if value is None else str(value)
