"""Put the models that come with the package into it, with cards made of what the study measured of them.

python docs/study/pretrained.py runs/fashion-mnist
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import vars_ode
from vars_ode.evaluation import read_evaluation
from vars_ode.study.measure import ATTACKED, EVALUATION
from vars_ode.study.plan import EXACT

ATTACKS = {"fgsm": "FGSM", "white-box": "PGD", "through rk4@5": "PGD through RK4", "square": "Square"}
MODELS = ("softmax", "vars-sd-factor", "vars-sd-coupling")
SEED = 0
CARD = """---
library_name: vars-ode
license: mit
tags:
- image-classification
- vars-ode
---

# fashion-mnist/{name}

A small vision transformer (`{model}`, {parameters:,} parameters) with the attention `{name}`, of 28 x 28 grey images in
ten classes. It comes with vars-ode to be looked at, converted, and solved in other ways; it is no classifier for use.

```python
import vars_ode

model = vars_ode.load_pretrained("fashion-mnist/{name}")  # of images in [0, 1], (batch, 1, 28, 28)
```

## Training

{train_images:,} images of Fashion-MNIST, {epochs} epochs, AdamW at a learning rate of {lr:g}, seed {seed}; mirrored and
shifted by up to two pixels. {solved}
It is one training of the plan `docs/study/fashion-mnist.yaml`.

## Measured accuracy

| condition | accuracy |
|---|---|
{rows}

Of {test_images} test images, attacks of {attack_images}, within {eps:.0f}/255 of each grey value. One training; another
seed differs by points.
"""


def main(study: Path) -> None:
    target = Path(vars_ode.__file__).parent / "pretrained" / "fashion-mnist"
    settings = json.loads((study / "results.json").read_text(encoding="utf-8"))["settings"]
    for name in MODELS:
        source = study / "runs" / f"{name}-seed{SEED}"
        (target / name).mkdir(parents=True, exist_ok=True)
        for file in ("model.safetensors", "config.json"):
            shutil.copyfile(source / file, target / name / file)
        (target / name / "README.md").write_text(card(name, source, settings), encoding="utf-8")


def measured(source: Path, settings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What was measured, in words and percent."""
    found: dict[str, list[float]] = {}
    for part in (EVALUATION, ATTACKED):
        for key, outcome in read_evaluation(source / part).outcomes.items():
            found.setdefault(key.condition, []).append(outcome.accuracy)
    yield "clean", f"{100 * fmean(found.pop('clean')):.1f} %"
    corruptions = [accuracy for name in settings["corruptions"] for accuracy in found.pop(name)]
    yield f"mean of {len(settings['corruptions'])} corruptions, severities 1 to 3", f"{100 * fmean(corruptions):.1f} %"
    for name, accuracies in found.items():
        yield ATTACKS.get(name, name.replace("_", " ")), f"{100 * fmean(accuracies):.1f} %"


def card(name: str, source: Path, settings: dict[str, Any]) -> str:
    run = json.loads((source / "run.json").read_text(encoding="utf-8"))
    rows = measured(source, settings)
    solved = (
        f"Its layers are solved by `{run['solver']}`, as they were in the training." if run["solver"] != EXACT else ""
    )
    facts = {
        "name": name,
        "parameters": run["parameters"],
        "lr": run["lr"],
        "seed": SEED,
        "solved": solved,
        "rows": "\n".join(f"| {what} | {value} |" for what, value in rows),
        "eps": 255 * settings["eps"],
    }
    return CARD.format(**{**settings, **facts})


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/study/pretrained.py FOLDER-OF-THE-STUDY")
    main(Path(sys.argv[1]))
