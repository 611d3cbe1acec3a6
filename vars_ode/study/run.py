"""Runs a study: trains and measures models in worker processes, resumes what was interrupted, gathers the results."""

import csv
import json
import multiprocessing
import os
import signal
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

import solvers
from vars_ode.building import ModelSpec
from vars_ode.data import fashion_mnist
from vars_ode.environment import environment
from vars_ode.files import claim_folder, write_json
from vars_ode.models import vars_layers
from vars_ode.saving import load_pretrained, save_pretrained
from vars_ode.study.measure import measure_robustness, measure_solvers, measure_traces, measured_images
from vars_ode.study.plan import EXACT, Plan
from vars_ode.study.progress import Event, Progress, reporter
from vars_ode.study.workers import end_with_parent
from vars_ode.training import Training, failures, flip_and_shift

RECORD = "settings.json"
TRAINED = "training.json"
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
    """One model to train and measure."""

    attention: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.attention}-seed{self.seed}"


def run_study(
    folder: Path,
    plan: Plan,
    attentions: Sequence[str],
    seeds: int,
    workers: int | None = None,
    command: str = "",
) -> list[str]:
    """Train and measure every attention with every seed; write results.csv and results.json.

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
    jobs = [Job(attention, seed) for attention in dict.fromkeys(attentions) for seed in range(seeds)]
    for attention in dict.fromkeys(attentions):
        _try_out(attention, plan)
    study = _open(folder, plan)
    _finished_runs(folder)  # a damaged record is refused before anything is trained
    started = time.monotonic()
    missing = [job for job in jobs if not _finished(folder, job)]
    missing.sort(key=lambda job: (_cost_rank(plan.arm(job.attention).attention), job.seed))
    try:
        failures = _run_jobs(folder, plan, missing, workers, len(jobs))
    finally:
        study["wall_seconds"] += time.monotonic() - started
        write_json(folder / RECORD, study)
    _gather(folder, study, command)
    return failures


def _try_out(attention: str, plan: Plan) -> None:
    """One tiny training step: a plan that cannot work, or be saved, is refused now and not in a worker."""
    images, labels = _head(fashion_mnist("train"), 2).tensors
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
        return study
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
    return (folder / "runs" / job.name / "run.json").is_file()


def _run_jobs(folder: Path, plan: Plan, jobs: list[Job], workers: int, total: int) -> list[str]:
    """Run `jobs` in worker processes; a sentence for each that failed."""
    if not jobs:
        return []
    failures = []
    context = multiprocessing.get_context("spawn")  # forking a process that has used torch's threads may deadlock
    events = context.SimpleQueue()
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, _start_worker, (events,))
    with Progress(events, finished=total - len(jobs), total=total):
        pending: dict[Future[str | None], Job] = {pool.submit(_run, folder, plan, job): job for job in jobs}
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


def _run(folder: Path, plan: Plan, job: Job) -> str | None:
    """Train and measure one model; a sentence if it failed. The record is written last: a run without one is undone."""
    report = reporter(_events, job.name)
    target = folder / "runs" / job.name
    try:
        training = _trained(target)
        if training is None:
            training = _train(plan, job, target, report)
        model = load_pretrained(target)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", solvers.SolverWarning)
            rows, traces = _measure(target, model, plan, report)
        training["warnings"] = sorted({*training["warnings"], *_messages(caught)})
        if traces:
            np.savez_compressed(target / "trace.npz", **traces)
        write_json(target / "run.json", {**training, "rows": rows})
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


def _train(plan: Plan, job: Job, target: Path, report: Any) -> dict[str, Any]:
    """Train a model and save it; the record, which is written last."""
    model = plan.build(job.attention, job.seed)
    started = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", solvers.SolverWarning)
        training = Training(
            model,
            _head(fashion_mnist("train"), plan.train_images),
            plan.recipe_of(job.attention),
            seed=job.seed,
            augment=flip_and_shift,
            progress=lambda update: report(Event.TRAINED, update.number / update.total),
        )
        history = training.run()
    record = {
        "attention": job.attention,
        "seed": job.seed,
        "solver": plan.solver if vars_layers(model) else EXACT,
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
    return record


def _measure(target: Path, model: nn.Module, plan: Plan, report: Any) -> tuple[list[Any], Any]:
    """All rows of results.csv, and the traces of a model that has a solver."""
    test = measured_images(plan)

    def progress(what: str) -> None:
        report(Event.MEASURED, what)

    rows = [*measure_robustness(target, model, plan, progress), *measure_solvers(model, test, plan, progress)]
    return rows, measure_traces(model, test, progress) if vars_layers(model) else None


def _messages(caught: list[warnings.WarningMessage]) -> list[str]:
    return sorted({str(warning.message) for warning in caught})


def _head(data: TensorDataset, count: int) -> TensorDataset:
    return TensorDataset(*(tensor[:count] for tensor in data.tensors))


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
