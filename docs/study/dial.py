"""The table and the picture of the page "The dial", from the finished study of docs/study/dial.yaml.

    vars-ode study docs/study/dial.yaml --out runs/dial
    python docs/study/dial.py runs/dial

Writes dial_table.md and dial.csv (one line per model, seed, solve and condition) beside this file, and the picture
docs/static/dial.png.
"""

import shutil
import statistics
import sys
from pathlib import Path

from matplotlib.figure import Figure

from vars_ode.plotting import COLOURS, DASHES, MARKERS, new_figure, tidy
from vars_ode.study.records import CLEAN, Condition, Results, read_results
from vars_ode.study.tables import accuracy_cell

HERE = Path(__file__).parent
FORMS = ("factor", "coupling", "monotone", "dictionary")
TRAININGS = ("fixed 5", "1-10", "1-40", "1-40 and at rest", "1-10, no ridge")
SOLVES = (*(f"euler@{n}" for n in (1, 2, 3, 5, 10, 20, 40)), "rk4@5", "tsit5@5", "fixed_point", "douglas_rachford")
SHOWN = {"rk4@5": "RK4, t = 5", "tsit5@5": "Tsit5, t = 5", "fixed_point": "rest (fixed point)"}
SHOWN |= {"douglas_rachford": "rest (Douglas-Rachford)", **{f"euler@{n}": f"{n}" for n in (1, 2, 3, 5, 10, 20, 40)}}


def main(folder: Path) -> None:
    results = read_results(folder)
    corrupted = results.sweep_conditions(next(name for name in results.variants if results.sweep(name)))
    (HERE / "dial_table.md").write_text(tables(results, corrupted), encoding="utf-8")
    shutil.copyfile(folder / "results.csv", HERE / "dial.csv")
    draw(results, corrupted).savefig(HERE.parent / "static" / "dial.png", dpi=130)


def tables(results: Results, corrupted: list[Condition]) -> str:
    """A table per form: a row per training, a column per solve."""
    parts = []
    for form in FORMS:
        rows = [["trained", "time", *(SHOWN[solve] for solve in SOLVES)], ["---", *["---:"] * (len(SOLVES) + 1)]]
        for training in TRAININGS:
            name = f"{form}, {training}"
            if results.sweep(name):
                cells = [accuracy_cell(results, name, corrupted, solve) for solve in SOLVES]
                rows.append([training, f"{seconds(results, name) / seconds(results, f'{form}, fixed 5'):.1f}", *cells])
        parts += [f"**{form}**\n\n", *(f"| {' | '.join(row)} |\n" for row in rows), "\n"]
    clean, worse = (results.spread("softmax", conditions) for conditions in ([CLEAN], corrupted))
    if clean.count:
        parts.append(f"Softmax attention: {100 * clean.mean:.1f} / {100 * worse.mean:.1f}.\n")
    deviations = [
        100 * (results.spread(name, conditions, solve).deviation or 0.0)
        for name in results.variants
        for conditions in ([CLEAN], corrupted)
        for solve in SOLVES
        if results.spread(name, conditions, solve).count > 1
    ]
    if deviations:
        parts.append(
            f"The standard deviation over seeds is {statistics.median(deviations):.1f} points in the median cell and "
            f"{max(deviations):.1f} in the widest.\n"
        )
    return "".join([*parts, at_rest(results)])


def seconds(results: Results, name: str) -> float:
    """Processor time of a training."""
    return statistics.median(run.train_seconds for (arm, _), run in results.runs.items() if arm == name)


def at_rest(results: Results) -> str:
    """What fixed-point iteration took, and where it ended."""
    found = []
    for name in ("factor, 1-40", "coupling, 1-40", "monotone, 1-40 and at rest", "factor, 1-10, no ridge"):
        evaluations = statistics.mean(results.by_seed(name, [CLEAN], "fixed_point", "evaluations").values())
        found.append(f"{evaluations:.0f} ({name})")
    return f"Field evaluations per layer until fixed-point iteration stopped, at most 200: {', '.join(found)}.\n"


def draw(results: Results, corrupted: list[Condition]) -> Figure:
    """Two panels, clean and corrupted; forms and trainings that tell the story."""
    chosen = {
        "factor, 1-40": "factor, trained with 1 to 40 steps",
        "coupling, 1-40": "coupling, trained with 1 to 40 steps",
        "factor, fixed 5": "factor, trained with five steps",
        "coupling, fixed 5": "coupling, trained with five steps",
    }
    steps = [solve for solve in SOLVES if solve.startswith("euler")] + ["rk4@5", "fixed_point"]
    labels = [SHOWN[solve] for solve in steps[:-2]] + ["RK4\nt = 5", "rest"]
    figure = new_figure(10.0, 4.0)
    grid = figure.subplots(1, 2, sharey=True)
    for axes, (title, conditions) in zip(grid, {"clean": [CLEAN], "corrupted": corrupted}.items(), strict=True):
        baseline = results.spread("softmax", conditions)
        axes.axhline(100 * baseline.mean, color="#000000", ls=":", lw=1.2, label="softmax attention")
        for i, (name, label) in enumerate(chosen.items()):
            spreads = {place: results.spread(name, conditions, solve) for place, solve in enumerate(steps)}
            spreads = {place: spread for place, spread in spreads.items() if spread.count}
            colour, marker = COLOURS[i % 2], {"marker": MARKERS[i], "mfc": "white", "ms": 5.5}
            line = {place: spread for place, spread in spreads.items() if place < len(steps) - 2}
            means = [100 * spread.mean for spread in line.values()]
            axes.plot(list(line), means, label=label, color=colour, ls=DASHES[i // 2], lw=1.4, **marker)
            lows, highs = ([100 * getattr(spread, end) for spread in line.values()] for end in ("low", "high"))
            axes.fill_between(list(line), lows, highs, color=colour, alpha=0.10, lw=0)
            for place in spreads.keys() - line.keys():  # beside each other
                spread, x = spreads[place], place + 0.16 * (i - 1.5)
                axes.plot([x], [100 * spread.mean], color=colour, ls="none", **marker)
                axes.vlines([x], 100 * spread.low, 100 * spread.high, color=colour, alpha=0.4, lw=2)
        axes.set_xticks(range(len(steps)), labels)
        name = "clean images" if title == "clean" else f"mean of {len(corrupted)} corruptions"
        tidy(axes, "how the trained model is solved: Euler steps of dt = 1", title=name)
    grid[0].set_ylabel("accuracy (%)", fontsize=10)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=9.5)
    return figure


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/study/dial.py FOLDER-OF-THE-STUDY")
    main(Path(sys.argv[1]))
