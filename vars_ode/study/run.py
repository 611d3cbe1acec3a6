"""Runs a study: trains and measures models in worker processes, resumes what was interrupted, gathers the results."""

import csv
import json
import multiprocessing
import os
import shutil
import signal
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

import solvers
from vars_ode.building import ModelSpec
from vars_ode.environment import environment
from vars_ode.files import claim_folder, write_json
from vars_ode.models import vars_layers
from vars_ode.saving import load_pretrained, save_pretrained
from vars_ode.study.claims import measure_gap, measure_objects, measure_sparsity
from vars_ode.study.measure import measure_robustness, measure_solvers, measure_traces
from vars_ode.study.plan import EXACT, Plan
from vars_ode.study.progress import Event, Progress, reporter
from vars_ode.study.workers import end_with_parent
from vars_ode.training import DivergedError, Training, failures

RECORD = "settings.json"
TRAINED = "training.json"
OBJECTS = "objects.npz"
COLUMNS = (
    "attention",
    "seed",
    "solver",
    "condition",
    "severity",
    "accuracy",
    "evaluations",
    "milliseconds",
    "residual",
    "stable",
)
_BY_COST = ("vars-softmax", "vars-sd", "vars-d", "softmax")  # dear ones first, so that no worker waits at the end


class Job(NamedTuple):
    """One model to train and measure; or, with a learning rate out of several, to train and choose by."""

    attention: str
    seed: int
    lr: float | None = None

    @property
    def name(self) -> str:
        return f"{self.attention}-seed{self.seed}" + (f"-lr{self.lr:g}" if self.lr is not None else "")

    @property
    def place(self) -> str:
        """Its folder in that of the study."""
        return f"{'runs' if self.lr is None else 'selection'}/{self.name}"

    @property
    def record(self) -> str:
        """The file that is written last."""
        return "run.json" if self.lr is None else TRAINED


def run_study(
    folder: Path,
    plan: Plan,
    attentions: Sequence[str],
    seeds: int,
    workers: int | None = None,
    command: str = "",
) -> list[str]:
    """Train and measure every attention with every seed; write results.csv and results.json.

    Where the plan names learning rates, each attention is first trained with each of them, and the one with the highest
    accuracy on the validation images is taken.

    Runs that are finished in `folder` already are kept, and models that are trained there are not trained again. An
    interrupted study (KeyboardInterrupt) leaves what is finished.

    Args:
        folder: where results go; new, empty, or of a study with the same plan.
        plan: what the results depend on.
        attentions: names out of `vars_ode.available_attentions`, or of arms of the plan.
        seeds: seeds 0, ..., seeds - 1.
        workers: processes of one thread each; as many as there are cores by default.
        command: how to repeat the run, for the report.

    Returns:
        a sentence for each run that failed.

    Raises:
        ValueError: before any training, for a folder that cannot be used and for settings that cannot be trained.
    """
    solvers.checks.positive_int("seeds", seeds)
    workers = workers if workers is not None else os.cpu_count() or 1
    solvers.checks.positive_int("workers", workers)
    jobs = [
        Job(name, seed)
        for name in dict.fromkeys(attentions)
        for seed in range(min(seeds, plan.arm(name).seeds or seeds))
    ]
    for attention in dict.fromkeys(attentions):
        _try_out(attention, plan)
    for attention in attentions:
        twin = plan.arm(attention).twin
        if plan.learning_rates and twin is not None and twin not in attentions:
            raise ValueError(f"arm {attention!r} takes the learning rate of {twin!r}, which is not among those trained")
    study = _open(folder, plan)
    _finished_runs(folder)  # a damaged record is refused before anything is trained
    started = time.monotonic()
    try:
        failures = _run_jobs(folder, plan, _selection(plan, attentions), workers)
        study["learning_rates"], undecided = chosen_rates(folder, plan, attentions)
        failures += [f"{name}: it could be trained with no learning rate of the plan" for name in undecided]
        jobs = [job for job in jobs if job.attention not in undecided]
        failures += _run_jobs(folder, plan, jobs, workers, study["learning_rates"])
    finally:
        study["wall_seconds"] += time.monotonic() - started
        write_json(folder / RECORD, study)
    _gather(folder, study, command)
    return failures


def _try_out(attention: str, plan: Plan) -> None:
    """One tiny training step: a plan that cannot work, or be saved, is refused now and not in a worker."""
    images, labels = (tensor[:2] for tensor in plan.images("train").tensors)
    model = plan.build(attention, seed=0)
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    ModelSpec.of(model)


def _open(folder: Path, plan: Plan) -> dict[str, Any]:
    """The study's own record, new or from an earlier start."""
    record = folder / RECORD
    if claim_folder(folder, RECORD, "study"):
        try:
            study: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
            differences = plan.differences(study["settings"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{record} cannot be read ({error}); name another folder with --out") from error
        if differences:
            raise ValueError(
                f"{folder} holds results of other settings ({'; '.join(differences)}); name another folder with --out, "
                "or remove it"
            )
        arms = {**study["settings"].get("arms", {}), **plan.as_dict()["arms"]}
        return {**study, "settings": {**study["settings"], "arms": arms}}
    study = {
        "settings": plan.as_dict(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "wall_seconds": 0.0,
    }
    (folder / "runs").mkdir(exist_ok=True)
    write_json(record, study)
    return study


def _cost_rank(attention: str) -> int:
    return next((rank for rank, prefix in enumerate(_BY_COST) if attention.startswith(prefix)), 0)


def _finished(folder: Path, job: Job) -> bool:
    return (folder / job.place / job.record).is_file()


def _selection(plan: Plan, attentions: Sequence[str]) -> list[Job]:
    """The trainings that decide on learning rates."""
    own = [name for name in dict.fromkeys(attentions) if plan.arm(name).twin is None]
    return [Job(name, seed, lr) for seed in range(plan.selection_seeds) for name in own for lr in plan.learning_rates]


def chosen_rates(folder: Path, plan: Plan, attentions: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Attention -> {"lr": the chosen one, "validation": {lr: accuracy}}, and the attentions for which none was trained.

    A rate whose training failed or diverged for some seed is not chosen.
    """
    chosen: dict[str, Any] = {}
    for name in dict.fromkeys(attentions) if plan.learning_rates else ():
        origin = plan.arm(name).twin or name
        found = {
            lr: _validation(folder, [j for j in _selection(plan, [origin]) if j.lr == lr]) for lr in plan.learning_rates
        }
        known = {lr: accuracy for lr, accuracy in found.items() if accuracy is not None}
        if known:
            chosen[name] = {
                "lr": max(known, key=lambda lr: known[lr]),
                "validation": {f"{lr:g}": a for lr, a in found.items()},
            }
    return chosen, [name for name in attentions if plan.learning_rates and name not in chosen]


def _validation(folder: Path, jobs: list[Job]) -> float | None:
    """The mean accuracy on the validation images at the end of trainings; None where one is missing."""
    records = [_trained(folder / job.place) for job in jobs]
    finished = [record for record in records if record is not None and "diverged" not in record]
    accuracies = [record["history"][-1]["validation_accuracy"] for record in finished]
    return sum(accuracies) / len(accuracies) if len(accuracies) == len(jobs) else None


def _run_jobs(
    folder: Path, plan: Plan, wanted: list[Job], workers: int, rates: Mapping[str, Any] | None = None
) -> list[str]:
    """Run what is not finished of the jobs, in worker processes; a sentence for each that failed.

    Seeds come one after the other, so that a study that is stopped has as many of each arm as can be; of one seed the
    dear ones come first, so that no worker waits at the end.
    """
    jobs = [job for job in wanted if not _finished(folder, job)]
    if not jobs:
        return []
    jobs.sort(key=lambda job: (job.seed, _cost_rank(plan.arm(job.attention).attention)))
    rates = rates or {}
    failures = []
    context = multiprocessing.get_context("spawn")  # forking a process that has used torch's threads may deadlock
    events = context.SimpleQueue()
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, _start_worker, (events,))
    with Progress(events, finished=len(wanted) - len(jobs), total=len(wanted)):
        pending: dict[Future[str | None], Job] = {
            pool.submit(_run, folder, plan, job, job.lr or rates.get(job.attention, {}).get("lr")): job for job in jobs
        }
        try:
            while pending:
                done, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    job, error = pending.pop(future), future.exception()
                    sentence = f"its process ended ({error})" if error else future.result()
                    if sentence:
                        failures.append(f"{job.name}: {sentence}")
        except KeyboardInterrupt:
            for process in multiprocessing.active_children():
                process.terminate()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return failures


_events: Any = None


def _start_worker(events: Any) -> None:
    global _events
    _events = events
    end_with_parent()
    torch.set_num_threads(1)  # two busy processes of two threads each are many times slower
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means


def _run(folder: Path, plan: Plan, job: Job, lr: float | None) -> str | None:
    """Train and measure one model; a sentence if it failed. The record is written last: a run without one is undone.

    Args:
        lr: learning rate; None for the recipe's.
    """
    report = reporter(_events, job.name)
    target = folder / job.place
    try:
        training = _trained(target)
        if training is None and job.lr is None and lr is not None:
            training = _from_selection(folder / job._replace(lr=lr).place, target)
        if training is None:
            training = _train_or_diverge(plan, job, lr, target, report)
        if job.lr is not None:
            return None
        model = load_pretrained(target)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", solvers.SolverWarning)
            rows, traces = _measure(target, model, plan, training["solver"], report)
        training["warnings"] = sorted({*training["warnings"], *_messages(caught)})
        if traces:
            np.savez_compressed(target / "trace.npz", **traces)
        claims = _measure_claims(target, model, plan, report) if plan.objects else {}
        write_json(target / "run.json", {**training, **claims, "rows": rows})
    except Exception as error:  # of whatever kind: the other runs go on, and the user is told
        return f"{type(error).__name__}: {error}"
    finally:
        report(Event.END, "")
    return None


def _trained(target: Path) -> dict[str, Any] | None:
    """The record of a training that is finished, with its model beside it."""
    try:
        record: dict[str, Any] = json.loads((target / TRAINED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and "warnings" in record else None


def _from_selection(origin: Path, target: Path) -> dict[str, Any] | None:
    """The training that a learning rate was chosen by, where it is that of a run."""
    record = _trained(origin)
    if record is not None:
        shutil.copytree(origin, target, ignore=shutil.ignore_patterns(TRAINED), dirs_exist_ok=True)
        write_json(target / TRAINED, record)  # last, as in a training
    return record


def _train_or_diverge(plan: Plan, job: Job, lr: float | None, target: Path, report: Any) -> dict[str, Any]:
    """A learning rate that is too high for an attention is an outcome of the choice and no failure."""
    try:
        return _train(plan, job, lr, target, report)
    except DivergedError as error:
        if job.lr is None:
            raise
        record = {"attention": job.attention, "seed": job.seed, "lr": lr, "diverged": str(error), "warnings": []}
        target.mkdir(parents=True, exist_ok=True)
        write_json(target / TRAINED, record)
        return record


def _train(plan: Plan, job: Job, lr: float | None, target: Path, report: Any) -> dict[str, Any]:
    """Train a model and save it; the record, which is written last."""
    recipe = plan.recipe_of(job.attention)
    recipe = recipe if lr is None else replace(recipe, lr=lr)
    model = plan.build(job.attention, job.seed)
    started = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", solvers.SolverWarning)
        training = Training(
            model,
            plan.images("train"),
            recipe,
            seed=job.seed,
            augment=plan.augmentation,
            validation=plan.images("validation") if plan.validation_images else None,
            progress=lambda update: report(Event.TRAINED, update.number / update.total),
        )
        history = training.run()
    record = {
        "attention": job.attention,
        "seed": job.seed,
        "solver": plan.solver_of(job.attention) if vars_layers(model) else EXACT,
        "lr": recipe.lr,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "train_seconds": time.process_time() - started,
        "history": history,
        "final_loss": history[-1]["loss"],
        "solves": training.solves,
        "warnings": sorted({*_messages(caught), *failures(training.solves)}),
    }
    target.mkdir(parents=True, exist_ok=True)
    save_pretrained(model, target)
    write_json(target / TRAINED, record)
    if recipe.torchcompile is not None:
        torch.compiler.reset()  # of one process's models only the first few would be compiled
    return record


def _measure(target: Path, model: nn.Module, plan: Plan, solver: str, report: Any) -> tuple[list[Any], Any]:
    """All rows of results.csv, and the traces of a model that has a solver."""
    test = plan.images("test")

    def progress(what: str) -> None:
        report(Event.MEASURED, what)

    rows = [*measure_robustness(target, model, plan, solver, progress)]
    rows += measure_solvers(model, test, plan, solver, progress)
    return rows, measure_traces(model, test, progress) if vars_layers(model) else None


def _measure_claims(target: Path, model: nn.Module, plan: Plan, report: Any) -> dict[str, Any]:
    """Maps against masks into a file; the share of active codes and the distance from self-attention."""
    images = plan.images("test").tensors[0]
    found = measure_objects(model, images, lambda what: report(Event.MEASURED, what))
    if found:
        np.savez_compressed(target / OBJECTS, **found)  # type: ignore[arg-type]
    return {"active": measure_sparsity(model, images), "gap": measure_gap(model, images)}


def _messages(caught: list[warnings.WarningMessage]) -> list[str]:
    return sorted({str(warning.message) for warning in caught})


def _finished_runs(folder: Path) -> list[dict[str, Any]]:
    """The records of the finished runs; a ValueError that names the file for one that is damaged."""
    return [_finished_run(path) for path in sorted(folder.glob("runs/*/run.json"))]


def _finished_run(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        missing = [name for name in ("attention", "seed", "rows") if name not in record]
        problem = f"without {' and '.join(missing)}" if missing else ""
        if not missing and not all(isinstance(row, dict) and row.keys() <= set(COLUMNS) for row in record["rows"]):
            problem = "its rows are not those of results.csv"
    except (OSError, ValueError, TypeError, RecursionError) as error:
        record, problem = {}, f"{error}"
    if problem or not isinstance(record, dict):
        raise ValueError(
            f"{path} is not the record of a finished run ({problem or 'no mapping'}): remove the file to have the "
            "model measured again, or its folder to have it trained again"
        )
    return record


def _gather(folder: Path, study: dict[str, Any], command: str) -> None:
    """results.csv and results.json out of all the finished runs in the folder."""
    records = _finished_runs(folder)
    with (folder / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for record in records:
            keys = {"attention": record["attention"], "seed": record["seed"]}
            writer.writerows({**keys, **row} for row in record.pop("rows"))
    write_json(folder / "results.json", {**study, "versions": environment(), "command": command, "runs": records})
