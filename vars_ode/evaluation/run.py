"""An evaluation in its folder: it goes on where it was interrupted, in one process or several."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import solvers
from vars_ode.analysis.subjects import load_model
from vars_ode.data import Preprocessing, spread
from vars_ode.environment import environment
from vars_ode.evaluation import storage
from vars_ode.evaluation.batches import Batch, Corrupted, batches
from vars_ode.evaluation.card import fill_card
from vars_ode.evaluation.settings import EvaluationSettings
from vars_ode.evaluation.steps import MADE, Step, Subject, plan
from vars_ode.evaluation.storage import Evaluation, Key, Part, read_evaluation
from vars_ode.evaluation.summary import summarise
from vars_ode.files import claim_folder, write_json
from vars_ode.measuring import evaluation_mode
from vars_ode.models import parse_solves, vars_layers
from vars_ode.robustness import Outcome

Report = Callable[[Key, float], object]  # (which, its accuracy)


def run_evaluation(
    checkpoint: str | os.PathLike[str],
    settings: EvaluationSettings,
    out: str | os.PathLike[str],
    *,
    batch_size: int = 64,
    workers: int = 0,
    device: str | None = None,
    baseline: str | os.PathLike[str] | None = None,
    card: bool = True,
    command: str = "",
    report: Report | None = None,
    show_progress: bool = True,
) -> Evaluation:
    """Evaluate a saved model, or go on with an evaluation that was interrupted; conditions may be added later.

    Started by torchrun or `accelerate launch`, each process evaluates its share of the batches, and every image is
    counted once. Batches are the same for any number of processes, and so are the results.

    Args:
        checkpoint: a folder or file that was saved, which tells its model.
        settings: what is measured.
        out: the results folder: new, or of an evaluation of the same model with the same settings.
        batch_size: images per batch. No effect on the results, but for "autoattack".
        workers: processes that load and corrupt pictures, for each process that evaluates.
        device: "cpu", "cuda"; a GPU by default where there is one.
        baseline: the folder of another evaluation, to whose errors those of this one are related too.
        card: put what was measured into the model's README.md, where `checkpoint` is a folder with one.
        command: how to repeat it, for the record.
        report: called with each result as it comes.
        show_progress: a bar for each condition, where there is a terminal.

    Raises:
        ValueError: a model, folder, setting or picture that cannot be used; the message says which.
        RuntimeError: the model gives no finite answer, or no gradient under an attack.
    """
    from accelerate import PartialState

    solvers.checks.positive_int("batch_size", batch_size)
    if (device or "").startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"there is no GPU for device={device!r}; leave it out, or give cpu")
    place, source = Path(out), Path(checkpoint)
    state = PartialState(cpu=(device or "").startswith("cpu") or not torch.cuda.is_available())
    against = None if baseline is None else read_evaluation(baseline)
    # Of several GPUs each process has its own.
    place_of_model = state.device if device in (None, "cuda") else torch.device(device)
    name, subject = _subject(source, settings, place_of_model)
    steps = plan(subject, settings)
    start = {
        "format_version": storage.FORMAT_VERSION,
        "model": _described(name, source, subject),
        "shared": settings.shared() | _autoattack_batch(settings, batch_size),
    }
    if state.is_main_process:
        _claim(place, start)
    state.wait_for_everyone()
    parts = storage.read_parts(place)
    _refuse_other_settings(place, steps, parts)
    for step in steps:
        if step.key not in parts:
            parts[step.key] = _measured(step, subject, settings, state, batch_size, workers, show_progress)
            if state.is_main_process:
                _keep(place, step.key, parts[step.key], report)
    parts = storage.ordered(parts, [step.key for step in steps])
    told = {"baseline": None if baseline is None else str(baseline), "command": command}
    record = {**start, **_results(subject, settings, parts, against), **told, "environment": environment()}
    if state.is_main_process:
        _finish(place, record, parts)
        if card:
            fill_card(source, record)
    state.wait_for_everyone()
    return Evaluation(record, {key: part.outcome for key, part in parts.items()})


def _keep(place: Path, key: Key, part: Part, report: Report | None) -> None:
    storage.write_part(place, key, part)
    if report is not None:
        report(key, part.outcome.accuracy)


def _results(
    subject: Subject, settings: EvaluationSettings, parts: Mapping[Key, Part], baseline: Evaluation | None
) -> dict[str, Any]:
    """What is recorded of a finished evaluation."""
    outcomes = {key: part.outcome for key, part in parts.items()}
    preprocessing = subject.preprocessing
    return {
        "status": "complete",
        "settings": settings.as_dict(),
        "preprocessing": {name: getattr(preprocessing, name) for name in preprocessing.__dataclass_fields__},
        "conditions": [part.record for part in parts.values()],
        "summary": summarise(outcomes, subject.num_classes, baseline, _made(parts)),
    }


def _subject(checkpoint: Path, settings: EvaluationSettings, device: torch.device) -> tuple[str, Subject]:
    name, model = load_model(checkpoint)
    if settings.solver is not None:
        (solve,) = parse_solves(settings.solver)
        model = solve.apply(model)
    model = model.to(device).float().eval().requires_grad_(False)
    preprocessing = Preprocessing.of(model)
    with torch.no_grad():
        num_classes = model(torch.zeros(1, *preprocessing.input_size, device=device)).shape[1]
    known = (getattr(model, "pretrained_cfg", None) or {}).get("label_names")
    names = tuple(known) if known and len(known) == num_classes else None
    return name, Subject(model, preprocessing, num_classes, names)


def _described(name: str, checkpoint: Path, subject: Subject) -> dict[str, Any]:
    """Which model it is: by the bits of its weights, and by how its layers are solved."""
    layers = {key: layer.settings() for key, layer in vars_layers(subject.model).items()}
    texts = {key: ", ".join(f"{k} {v}" for k, v in found.items() if v is not None) for key, found in layers.items()}
    solves = list(dict.fromkeys(texts.values()))
    return {
        "name": name,
        "path": str(checkpoint),
        "weights": digest(subject.model),
        "num_classes": subject.num_classes,
        "solve": "; ".join(solves) or "its attention takes no solver",
        "layers": texts,
    }


def digest(model: nn.Module) -> str:
    """Of the names and bits of all weights."""
    found = blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _autoattack_batch(settings: EvaluationSettings, batch_size: int) -> dict[str, Any]:
    """AutoAttack draws for a batch, so that its size is a setting."""
    return {"batch_size": batch_size} if "autoattack" in settings.conditions else {}


def _claim(place: Path, start: Mapping[str, Any]) -> None:
    """Make the folder, or refuse one of another model or of other settings."""
    if claim_folder(place, storage.RECORD, "evaluation"):
        there = storage.read_record(place)
        pairs = [("the weights", there["model"]["weights"], start["model"]["weights"])]
        pairs += [("the solve", there["model"]["layers"], start["model"]["layers"])]
        pairs += [(k, there["shared"][k], v) for k, v in start["shared"].items() if k in there["shared"]]
        _refuse(place, [(what, old, new) for what, old, new in pairs if old != new])
        return
    write_json(place / storage.RECORD, {**start, "status": "running", "conditions": []})


def _refuse_other_settings(place: Path, steps: list[Step], parts: Mapping[Key, Part]) -> None:
    for step in steps:
        if step.key in parts:
            there = parts[step.key].record["settings"]
            names = sorted(there.keys() | step.settings.keys())
            pairs = [(f"{name} of {step.key}", there.get(name), step.settings.get(name)) for name in names]
            _refuse(place, [(what, old, new) for what, old, new in pairs if old != new])


def _refuse(place: Path, differences: list[tuple[str, Any, Any]]) -> None:
    if differences:
        told = "; ".join(f"{what} {old!r} there, {new!r} now" for what, old, new in differences)
        raise ValueError(f"{place} holds an evaluation with other settings ({told}); name another folder with --out")


def _measured(
    step: Step, subject: Subject, settings: EvaluationSettings, state: Any, batch_size: int, workers: int, show: bool
) -> Part:
    """One pass, by all processes."""
    from accelerate.utils import gather_object

    started = time.monotonic()
    data = Corrupted(step.data.open(), step.corruption, *step.key[1:], settings.seed, settings.skip_unreadable)
    chosen = spread(len(data), settings.images)
    cut = [chosen[first : first + batch_size] for first in range(0, len(chosen), batch_size)]
    mine = cut[state.process_index :: state.num_processes]
    found: list[Outcome] = []
    unreadable: list[str] = []
    total = sum(map(len, mine))
    hidden = None if state.is_main_process and show else True  # None: where nobody looks at a terminal
    with (
        tqdm(total=total, desc=str(step.key), unit=" images", disable=hidden, leave=False) as bar,
        evaluation_mode(subject.model),
    ):
        for batch in batches(data, mine, workers):
            unreadable += batch.unreadable
            if len(batch.images):
                found.append(_answered(step, subject, batch))
            bar.update(len(batch.images) + len(batch.unreadable))
    gathered = gather_object([(found, unreadable)])
    everywhere = [outcome for outcomes, _ in gathered for outcome in outcomes]
    names = sorted(name for _, lost in gathered for name in lost)
    if not everywhere:
        raise ValueError(f"{step.key}: none of the {len(chosen)} pictures can be read, such as {names[0]}")
    outcome = Outcome.merge(everywhere)
    seconds = round(time.monotonic() - started, 3)
    facts = {"images": len(outcome), "unreadable": names, "settings": step.settings, "seconds": seconds}
    return Part(outcome, {**step.key.as_dict(), **facts})


def _answered(step: Step, subject: Subject, batch: Batch) -> Outcome:
    """What the model says to one batch."""
    model, device = subject.classifier, next(subject.model.parameters()).device
    images, labels = batch.images.to(device), batch.labels.to(device)
    if step.attack is not None:
        images = step.attack(model, images, labels, batch.indices)
    predictions = predicted(model, images, step.data.classes).cpu()
    return Outcome(step.key.condition, step.key.severity, batch.indices, batch.labels, predictions)


@torch.no_grad()
def predicted(model: nn.Module, images: Tensor, classes: tuple[int, ...] | None) -> Tensor:
    """(batch,) the classes of the largest logits, among some of them where `classes` says so.

    Raises:
        RuntimeError: logits that are not finite.
    """
    logits = model(images)
    if not logits.isfinite().all():
        bad = int((~logits.isfinite().all(1)).sum())
        raise RuntimeError(f"the model gave no finite answer for {bad} of {len(images)} images; look at its solver")
    if classes is None:
        return logits.argmax(1)
    chosen = torch.tensor(classes, device=logits.device)
    return chosen[logits[:, chosen].argmax(1)]


def _made(parts: Mapping[Key, Part]) -> set[str]:
    """The benchmarks whose pictures were made of the clean ones."""
    return {key.benchmark for key, part in parts.items() if part.record["settings"].get("source", "").startswith(MADE)}


def _finish(place: Path, record: Mapping[str, Any], parts: Mapping[Key, Part]) -> None:
    """In this order, so that an interruption leaves what can be gone on from."""
    write_json(place / storage.RECORD, record)
    storage.write_outcomes(place, parts)
    storage.write_table(place, parts)
    storage.remove_parts(place)
