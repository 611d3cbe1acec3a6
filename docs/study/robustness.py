"""The page "Is it more robust?" with its tables and pictures, computed from the archives beside this file.

    vars-ode study docs/study/fashion-mnist.yaml --out runs/fashion-mnist
    vars-ode study docs/study/digits.yaml --out runs/digits
    python docs/study/robustness.py runs/fashion-mnist runs/digits

With folders of studies, their results are first put into the archives (NAME.json, NAME.csv, NAME.npz). Writes
docs/robustness.md and the pictures docs/static/robustness*.png. Every number on the page is computed here.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import figures
import numpy as np

from vars_ode.statistics import Difference
from vars_ode.study.archive import collect, read_archive
from vars_ode.study.findings import BASELINE, MEASURES, WHITE_BOX, Findings, Found, Maps

HERE = Path(__file__).parent
DATA = {"fashion-mnist": "Fashion-MNIST", "digits": "the digits"}
KINDS = {
    "article": "one article",
    "noisy": "one article, with noise",
    "two": "two small articles on a noisy background",
}
LEADING = ("vars-sd-factor", "vars-sd-coupling")


def main(folders: Sequence[str]) -> None:
    for folder in map(Path, folders):
        collect(folder, HERE / folder.name)
    studies = {name: Findings(read_archive(HERE / name)) for name in DATA if (HERE / f"{name}.npz").is_file()}
    static = HERE.parent / "static"
    for name, figure in figures.draw(studies).items():
        figure.savefig(static / f"{name}.png", dpi=130)
    (HERE.parent / "robustness.md").write_text(page(studies), encoding="utf-8")


def page(studies: dict[str, Findings]) -> str:
    first = next(iter(studies.values()))
    parts = [
        "# Is it more robust?\n",
        "<!-- Written by docs/study/robustness.py: change that, and run it again. -->\n",
        summary(studies),
        "![Differences to softmax attention in the main comparison](static/robustness.png)\n",
        figures.READING + "\n",
        limits(studies),
        setting(studies),
        *(comparison(name, study) for name, study in studies.items()),
        "![Every training: accuracy on clean and on corrupted images](static/robustness_trainings.png)\n",
        causes(first),
        objects(first),
        limit_of_one_step(first),
        reproduce(studies),
    ]
    return "\n".join(part for part in parts if part)


# ------------------------------------------------------------------------------------------------------ words


def points(found: Difference, name: str = "") -> str:
    """+3.2 points (95 % interval 1.1 to 5.3)."""
    label = f" {name}" if name else ""
    return f"{100 * found.mean:+.1f} points{label} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"


def counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    names = list(names)
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "none"


def code(names: Sequence[str]) -> str:
    return listed([f"`{name}`" for name in names])


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def better_and_worse(study: Findings, measure: str) -> tuple[list[str], list[str]]:
    """The arms that are significantly above and below the baseline."""
    found = {arm: study.against_baseline[arm, measure] for arm in study.main if arm != BASELINE}
    above = [arm for arm, each in found.items() if each.holds and each.difference.mean > 0]
    below = [arm for arm, each in found.items() if each.holds and each.difference.mean < 0]
    return above, below


def leader(study: Findings) -> str:
    """The arm with the highest accuracy on corrupted images, the baseline apart."""
    return max((arm for arm in study.main if arm != BASELINE), key=lambda arm: study.value(arm, "corrupted"))


# ------------------------------------------------------------------------------------------------------ page


def summary(studies: dict[str, Findings]) -> str:
    """The first paragraphs: what holds, how strongly, for which setting, and what does not."""
    lines = [
        "Small vision transformers on small grey pictures, and no photographs: that is what is measured here, and "
        "what can be concluded ends there.\n",
        f"**More robust?** {' '.join(claim_of_robustness(name, study) for name, study in studies.items())}\n",
        f"**Do salient objects emerge?** {claim_of_objects(next(iter(studies.values())))}\n",
        f"**Is self-attention the single step?** {claim_of_one_step(next(iter(studies.values())))}\n",
    ]
    return "\n".join(lines)


def claim_of_robustness(name: str, study: Findings) -> str:
    best, seeds = leader(study), study.common(*study.main)
    corrupted, kept, attacked = (study.against_baseline[best, m] for m in ("corrupted", "kept", "attacks"))
    above, below = better_and_worse(study, "corrupted")
    kept_above, kept_below = better_and_worse(study, "kept")
    attack_above, attack_below = better_and_worse(study, "attacks")
    text = (
        f"On {DATA[name]}, over {counted(len(seeds), 'seed')}, {code(above)} recognise{'s' * (len(above) == 1)} more "
        f"of the corrupted images than softmax attention after correction for all comparisons, {code(below)} fewer. "
        f"The most robust is `{best}`: {percent(study.value(best, 'corrupted'))} % of the corrupted images against "
        f"{percent(study.value(BASELINE, 'corrupted'))} %, {points(corrupted.difference)}"
        f"{'' if corrupted.holds else ', which is no significant difference'}. "
        f"Of clean images it recognises {percent(study.value(best, 'clean'))} % against "
        f"{percent(study.value(BASELINE, 'clean'))} %, so the gain is "
        f"{'not only one of accuracy' if kept.holds and kept.difference.mean > 0 else 'one of accuracy'}: of the "
        f"images "
        f"that a model recognises when they are clean, {percent(study.value(best, 'kept'))} % stay recognised under "
        f"corruption, against {percent(study.value(BASELINE, 'kept'))} % ({points(kept.difference)}"
        f"{'' if kept.holds else ', not significant'}). "
    )
    text += (
        f"By that relative measure {code(kept_above)} {'are' if len(kept_above) != 1 else 'is'} ahead of softmax "
        f"attention and {code(kept_below)} behind. "
    )
    return text + (
        f"Against all attacks together {code(attack_above)} {'are' if len(attack_above) != 1 else 'is'} ahead, "
        f"{code(attack_below)} behind; `{best}` {points(attacked.difference)}"
        f"{'' if attacked.holds else ', not significant'}."
    )


def claim_of_objects(study: Findings) -> str:
    maps = {kind: Maps(study.archive, kind) for kind in KINDS}
    arms = [arm for arm in study.main if arm in maps["article"].arms and arm != BASELINE]
    if not arms:
        return "Not measured yet."
    ahead = {
        kind: [a for a in arms if found.difference(a, 5.0, (BASELINE, 1.0)).low > 0] for kind, found in maps.items()
    }
    behind = {
        kind: [a for a in arms if found.difference(a, 5.0, (BASELINE, 1.0)).high < 0] for kind, found in maps.items()
    }
    chance = {kind: [a for a in arms if found.difference(a, 5.0).low > 0] for kind, found in maps.items()}
    rising = {kind: [a for a in arms if found.difference(a, 5.0, (a, 1.0)).low > 0] for kind, found in maps.items()}
    sentences = [
        f"In pictures of {KINDS[kind]}, of the {len(arms)} VARS attentions {len(chance[kind])} look at the object "
        f"more than "
        f"chance would, {len(ahead[kind])} more than softmax attention does and {len(behind[kind])} less, and in "
        f"{len(rising[kind])} the map is closer to the object after five steps than after one"
        for kind in KINDS
    ]
    return "; ".join(part if i == 0 else part[0].lower() + part[1:] for i, part in enumerate(sentences)) + "."


def claim_of_one_step(study: Findings) -> str:
    rows = gap_rows(study)
    if not rows:
        return "Not measured yet."
    first, last = rows[0], rows[-1]
    return (
        "As an identity it holds to rounding, and the tests hold it to that. The trained models are far from it: the "
        "outputs "
        f"of the heads of `{LEADING[0]}` differ from those of their own single-step limit by {first['to_limit']:.2f} "
        f"of its "
        f"length at the first step without sparsity, and by {last['to_limit']:.2f} as trained (cosine "
        f"{last['limit_cosine']:.2f}). {single_step_accuracy(study)}"
    )


def single_step_accuracy(study: Findings) -> str:
    """What is left of a trained model in its single-step limit."""
    found = {arm: accuracy_under(study, arm, "single-step") for arm in LEADING if arm in study.archive.arms}
    found = {arm: value for arm, value in found.items() if not math.isnan(value)}
    parts = [
        f"`{arm}` then recognises {percent(value)} % instead of {percent(study.value(arm, 'clean'))} %"
        for arm, value in found.items()
    ]
    return f"Nor can a trained model be put back into the limit: of the clean images {listed(parts)}." if parts else ""


def accuracy_under(study: Findings, arm: str, solver: str) -> float:
    """Mean clean accuracy of the trained models under another solve."""
    rows = figures.csv_rows(HERE / f"{study.archive.settings['data']}.csv")
    found = [
        float(r["accuracy"] or "nan")
        for r in rows
        if (r["attention"], r["solver"], r["condition"]) == (arm, solver, "clean")
    ]
    return float(np.mean(found)) if found else math.nan


def limits(studies: dict[str, Findings]) -> str:
    study = next(iter(studies.values()))
    settings, parameters = study.archive.settings, study.archive.details(BASELINE, "parameters")[0]
    long = f"{BASELINE}, 90 epochs"
    text = (
        "## What this cannot tell\n\n"
        f"The networks have {parameters:,} parameters in three blocks, the pictures 28 x 28 or 16 x 16 pixels, and the "
        f"training sets {listed([format(s.archive.settings['train_images'], ',') for s in studies.values()])} images. "
        "Corruptions are made for this size, and are no ImageNet-C. The attention is at hand in each of the blocks, "
        "with "
        f"{settings['num_features']} random features for 16 channels per head; of the authors' settings for ImageNet "
        "none was used. Other sizes, other data and longer trainings may turn the order around. "
    )
    if long in study.archive.arms:
        text += (
            f"At {settings['epochs']} epochs softmax attention has not stopped improving: with three times as many it "
            f"gains {points(study.difference(long, BASELINE, 'clean'))} on clean images, which is why both were "
            f"trained so long "
            "as well, below. "
        )
    return text + (
        "Square has few queries, and no attack adapts to the attractor beyond its gradient through the solve and "
        "through "
        "another solver, so that the accuracies under attack are upper bounds.\n"
    )


def setting(studies: dict[str, Findings]) -> str:
    study = next(iter(studies.values()))
    s = study.archive.settings
    counts = [count for arm in study.main for count in study.archive.details(arm, "parameters")]
    spread = 100 * (max(counts) / min(counts) - 1)
    epochs = listed([f"{other.archive.settings['epochs']}" for other in studies.values()])
    rates = {arm: found["lr"] for arm, found in study.archive.record["learning_rates"].items() if arm in study.main}
    chosen = listed([f"{code([a for a in rates if rates[a] == lr])} at {lr:g}" for lr in sorted(set(rates.values()))])
    return (
        "## How it was measured\n\n"
        f"{len(study.main)} attentions stand in the same vision transformer (`{s['model']}`: 64 wide, 3 blocks, 4 "
        f"heads). What an "
        "attention has less or more parameters is made up for by the width of the MLPs, so that the models differ by "
        "at "
        f"most {spread:.1f} %. All are trained on the same {s['train_images']:,} images in the same order, for "
        f"{epochs} epochs "
        f"with AdamW, and the VARS models with {s['solver'].split('@')[1]} Euler steps, lam = {s['sparsity']:g} and a "
        f"ridge of "
        f"{s['ridge']:g}. The learning rate was chosen for each out of "
        f"{listed([f'{lr:g}' for lr in s['learning_rates']])} by "
        f"the accuracy on {s['validation_images']:,} held-out training images, with seed 0: {chosen}. The test images "
        f"were "
        "measured once, after that.\n\n"
        f"Eight corruptions at three severities count into the mean; occlusion and translation are shifts that no arm "
        "was trained on, and stand apart. PGD takes "
        f"{s['attack_steps']} steps of {s['attack_step']:g} eps in {s['restarts']} restarts, at eps = "
        f"{255 * s['eps']:.0f}/255; "
        f"the VARS models are attacked through their own solve and through `{s['transfer']}` as well, and all "
        f"by Square with {s['queries']} queries,"
        f" on {s['attack_images']} images. Differences are paired by seed and image; their 95 % intervals "
        "come from a bootstrap over both (2,000 resamples), and their p-values are corrected by Holm over all the "
        f"{len(study.against_baseline)} comparisons of a data set.\n"
    )


def comparison(name: str, study: Findings) -> str:
    """The main table of a data set, and the differences."""
    heads = [
        "attention",
        "seeds",
        "clean",
        "corrupted",
        "kept",
        "mCE",
        "relative mCE",
        "FGSM",
        "PGD",
        "all attacks",
        "occlusion",
        "translation",
    ]
    rows = [heads]
    for arm in study.main:
        errors = (
            ["100", "100"]
            if arm == BASELINE
            else [f"{study.corruption_error(arm, relative)[0]:.0f}" for relative in (False, True)]
        )
        cells = {m: percent(study.value(arm, m)) for m in MEASURES}
        shown = [cells["clean"], cells["corrupted"], cells["kept"], *errors]
        shown += [cells[m] for m in ("fgsm", "pgd", "attacks", "occlusion", "translation")]
        rows.append([f"`{arm}`", str(len(study.archive.seeds(arm))), *shown])
    differences = [["against softmax", "clean", "corrupted", "kept", "PGD", "all attacks", "occlusion", "translation"]]
    columns = ("clean", "corrupted", "kept", "pgd", "attacks", "occlusion", "translation")
    for arm in study.main[1:]:
        differences.append([f"`{arm}`", *(cell(study.against_baseline[arm, m]) for m in columns)])
    intervals = [
        f"`{arm}` {low:.0f} to {high:.0f}"
        for arm in LEADING
        if arm in study.main
        for _, low, high in [study.corruption_error(arm, relative=True)]
    ]
    return (
        f"## {DATA[name][0].upper()}{DATA[name][1:]}\n\n"
        "Accuracy in percent, means over seeds. *Kept* is the share of the images recognised when clean that are "
        "recognised "
        "when corrupted; the errors mCE and relative mCE are in percent of softmax attention's, lower is better.\n\n"
        f"{table(rows)}\n"
        "The differences in points with their 95 % intervals; **bold** where p < 0.05 after Holm's correction.\n\n"
        f"{table(differences)}\n"
        f"The 95 % interval of the relative mCE: {listed(intervals)}. {diagnosis(study)}\n"
    )


def cell(found: Found) -> str:
    d = found.difference
    mark = "**" if found.holds else ""
    return f"{mark}{100 * d.mean:+.1f}{mark} ({100 * d.low:+.1f}, {100 * d.high:+.1f})"


def diagnosis(study: Findings) -> str:
    """Whether the gradient of an attack misleads: an attack through another solve or without one that does better."""
    worse = []
    for arm in study.main:
        accuracy = {attack: study.archive.correct(arm, [attack]).mean() for attack in study.attacks(arm)}
        better = [name for (name, _), value in accuracy.items() if value < accuracy.get(WHITE_BOX, 0.0)]
        worse += [f"`{arm}` {name}" for name in better]
    if not worse:
        return "No attack through another solve or without gradients does better than the white-box one."
    return f"An attack other than the white-box one does better on {listed(worse)}: there the gradient misleads it."


def causes(study: Findings) -> str:
    """The ablations."""
    if not study.ablations:
        return ""
    rows = [["variation", "seeds", "of", "active codes (%)", "clean", "corrupted", "kept", "PGD"]]
    for arm, twin in study.ablations.items():
        cells = [cell(study.against_twins[arm, m]) for m in ("clean", "corrupted", "kept", "pgd")]
        rows.append([arm, str(len(study.common(arm, twin))), f"`{twin}`", active(study, arm), *cells])
    shares = listed([f"`{arm}` {active(study, arm)} %" for arm in study.main if active(study, arm) != "-"])
    return (
        "## Which part carries it\n\n"
        "Each variation differs from its twin in one setting, has its learning rate, and is compared with it on the "
        "same seeds; "
        "bold after Holm's correction over this table.\n\n"
        f"{table(rows)}\n"
        f"The share of code entries that are not zero at the end of the solve, in the main comparison: {shares}.\n\n"
        f"{parts(study)}\n"
    )


def active(study: Findings, arm: str) -> str:
    found = [value for value in study.archive.details(arm, "active") if value is not None]
    return f"{100 * np.mean(found):.0f}" if found else "-"


def parts(study: Findings) -> str:
    """Sentences on the learned forms, the kinds of templates, and the long trainings."""
    sentences = []
    pairs = {
        "The learned factor adds": ("vars-sd-factor", "vars-sd"),
        "the learned coupling adds": ("vars-sd-coupling", "vars-sd"),
        "the learned dictionary adds": ("vars-sd-dictionary", "vars-sd"),
        "static templates beside the dynamic ones add": ("vars-sd-factor", "vars-d-factor"),
    }
    for text, (one, other) in pairs.items():
        if one in study.main and other in study.main:
            sentences.append(f"{text} {points(study.difference(one, other, 'corrupted'))} (`{one}` against `{other}`)")
    result = f"On corrupted images, without correction: {'; '.join(sentences)}." if sentences else ""
    long, short = f"{LEADING[0]}, 90 epochs", f"{BASELINE}, 90 epochs"
    if long in study.archive.arms and short in study.archive.arms:
        found = {m: study.difference(long, short, m) for m in ("clean", "corrupted", "kept")}
        result += (
            f" With three times the budget `{LEADING[0]}` is ahead of softmax attention by {points(found['clean'])} "
            f"on clean, "
            f"{points(found['corrupted'])} on corrupted images and {points(found['kept'])} in what is kept."
        )
    return result


def objects(study: Findings) -> str:
    maps = Maps(study.archive, "article")
    if not maps.arms:
        return ""
    text = (
        "## Do salient objects emerge?\n\n"
        "The map of the last block, the attention that each token receives from all queries in all heads, ranks the "
        "pixels; "
        "the area under its precision-recall curve against the true mask is 1 for a map that finds the object and the "
        "object's "
        "share of the picture for a uniform one. The mask of an article are its pixels above a grey value of 0.1; the "
        "pictures "
        "with two small articles have true masks by construction. Softmax attention has one map and no time, "
        "Performer none.\n\n"
        "![Average precision of the maps over solver time](static/robustness_objects.png)\n\n"
    )
    for kind, words in KINDS.items():
        found = Maps(study.archive, kind)
        rows = [
            [
                "attention",
                "t = 1",
                "t = 5",
                "t = 10",
                "t = 5 against softmax",
                "t = 5 against chance",
                "t = 5 against t = 1",
            ]
        ]
        for arm in (a for a in study.main if a in found.arms):
            if len(found.times(arm)) == 1:
                rows.append(
                    [
                        f"`{arm}`",
                        *[f"{found.precision(arm, 1.0):.3f}"] * 3,
                        "",
                        interval(found.difference(arm, 1.0)),
                        "",
                    ]
                )
                continue
            columns = [f"{found.precision(arm, t):.3f}" for t in (1.0, 5.0, 10.0)]
            differences = [
                found.difference(arm, 5.0, (BASELINE, 1.0)),
                found.difference(arm, 5.0),
                found.difference(arm, 5.0, (arm, 1.0)),
            ]
            rows.append([f"`{arm}`", *columns, *map(interval, differences)])
        text += f"Pictures of {words}; chance is {found.chance.mean():.3f}.\n\n{table(rows)}\n"
    return text


def interval(found: Difference) -> str:
    return f"{found.mean:+.3f} ({found.low:+.3f}, {found.high:+.3f})"


def gap_rows(study: Findings) -> list[dict[str, float]]:
    """The way from the single step to the trained model: steps without sparsity, then with it; means over seeds."""
    arm = LEADING[0]
    tables = study.archive.details(arm, "gap") if arm in study.archive.arms else []
    if not tables or not tables[0]:
        return []
    return [
        {key: float(np.mean([rows[i][key] for rows in tables])) for key in tables[0][0]}
        for i, row in enumerate(tables[0])
        if (row["sparsity"] == 0 and row["time"] <= 5) or row["time"] == 5
    ]


def limit_of_one_step(study: Findings) -> str:
    if not gap_rows(study):
        return ""
    rows = [
        ["from the limit", "lam", "steps", "to the single-step limit", "cosine", "to softmax of its q, k, v", "cosine"]
    ]
    for i, row in enumerate(gap_rows(study)):
        numbers = [f"{row[key]:.2f}" for key in ("to_limit", "limit_cosine", "to_softmax", "softmax_cosine")]
        rows.append([str(i + 1), f"{row['sparsity']:g}", f"{row['time']:.0f}", *numbers])
    return (
        "## How far is a trained model from self-attention?\n\n"
        "Self-attention is VARS attention of one step from zero with lam = 0 and eta = 1, with the softmax kernel as "
        "Gram: that is an "
        "identity, and tested to rounding. Along the way from that limit to the trained "
        f"`{LEADING[0]}` the outputs of its heads differ like this (`single_step_gap`: |o - o'| / |o'|, means over "
        f"seeds, layers, "
        "heads and pictures). The first row has the step bound eta and the learned form of the trained model "
        "already.\n\n"
        f"{table(rows)}\n"
        "![The distance from the limit over the steps](static/robustness_gap.png)\n"
    )


def reproduce(studies: dict[str, Findings]) -> str:
    seconds = sum(
        sum(study.archive.details(arm, "train_seconds")) for study in studies.values() for arm in study.archive.arms
    )
    trainings = sum(len(study.archive.runs) for study in studies.values())
    versions = next(iter(studies.values())).archive.record["versions"]
    named = ", ".join(f"{key} {versions[key]}" for key in ("python", "torch", "timm") if key in versions)
    commands = "".join(f"vars-ode study docs/study/{name}.yaml --out runs/{name}\n" for name in studies)
    folders = " ".join(f"runs/{name}" for name in studies)
    return (
        "## To run it again\n\n"
        f"```bash\n{commands}python docs/study/robustness.py {folders}\n```\n\n"
        f"A study goes on where it was stopped. The {trainings} trainings here took {seconds / 3600:.1f} hours of "
        f"processor time, "
        f"on one thread each ({named}). Trainings are chaotic in the last bits of a float, so that single accuracies "
        f"differ by "
        "points on another processor; the differences over seeds are what should come back. The archives beside the "
        "plans hold "
        'the prediction for every image: `vars_ode.study.archive.read_archive("docs/study/fashion-mnist")`. The '
        "notebook `examples/robustness.ipynb` starts from them.\n"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
