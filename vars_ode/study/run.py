"""Runs the demo: trains and measures twins in worker processes, resumes what was interrupted, gathers the results."""

import csv
import json
import multiprocessing
import os
import platform
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch.utils.data import TensorDataset

import solvers
from vars_ode.data import fashion_mnist
from vars_ode.models.layers import EXACT, build_twin, vars_layers
from vars_ode.report.study import write_report
from vars_ode.study.measure import measure_robustness, measure_solvers, measure_traces
from vars_ode.study.plan import Settings
from vars_ode.study.progress import Event, Progress, reporter
from vars_ode.training import fit, flip_and_shift

COLUMNS = ("attention", "seed", "solver", "condition", "severity", "accuracy", "evaluations", "milliseconds")
_BY_COST = ("vars-softmax", "vars-sd", "vars-d", "softmax")  # dear ones first, so that no worker waits at the end


class Job(NamedTuple):
    """One twin to train and measure."""

    attention: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.attention}-seed{self.seed}"

    @property
    def cost_rank(self) -> int:
        return next((rank for rank, prefix in enumerate(_BY_COST) if self.attention.startswith(prefix)), 0)


class FolderError(ValueError):
    """The results folder cannot be used."""


def run_study(
    folder: Path,
    settings: Settings,
    attentions: Sequence[str],
    seeds: int,
    workers: int | None = None,
    command: str = "vars-ode demo",
) -> tuple[Path, list[str]]:
    """Train and measure every attention with every seed, and write the report.

    Runs that are finished in `folder` already are kept. An interrupted study (KeyboardInterrupt) leaves its finished
    runs there.

    Args:
        folder: where results go; new, empty, or of a study with the same settings.
        settings: what the results depend on.
        attentions: labels out of `twins.ATTENTIONS`.
        seeds: seeds 0, ..., seeds - 1.
        workers: processes of one thread each; as many as there are cores by default.
        command: how to repeat the run, for the report.

    Returns:
        the report's path, and a sentence for each run that failed.

    Raises:
        ValueError: before any training, for a folder that cannot be used and for settings that cannot be trained.
    """
    solvers.checks.positive_int("seeds", seeds)
    workers = workers if workers is not None else os.cpu_count() or 1
    solvers.checks.positive_int("workers", workers)
    jobs = [Job(attention, seed) for attention in dict.fromkeys(attentions) for seed in range(seeds)]
    for attention in dict.fromkeys(attentions):
        _rehearse(attention, settings)
    study = _open(folder, settings)
    started = time.monotonic()
    missing = sorted((job for job in jobs if not _finished(folder, job)), key=lambda job: (job.cost_rank, job.seed))
    try:
        failures = _run_jobs(folder, settings, missing, workers, len(jobs))
    finally:
        study["wall_seconds"] += time.monotonic() - started
        _write_json(folder / "settings.json", study)
    _gather(folder, study, command)
    return write_report(folder), failures


def _rehearse(attention: str, settings: Settings) -> None:
    """One tiny training step: settings that cannot work are refused now and not in a worker."""
    model = build_twin(attention, settings, seed=0)
    side = settings.image_size
    data = TensorDataset(torch.rand(2, 1, side, side), torch.zeros(2, dtype=torch.long))
    loss = torch.nn.functional.cross_entropy(model(data.tensors[0]), data.tensors[1])
    loss.backward()


def _open(folder: Path, settings: Settings) -> dict[str, Any]:
    """The study's own record, new or from an earlier start."""
    record = folder / "settings.json"
    if folder.exists() and not folder.is_dir():
        raise FolderError(f"{folder} is a file; name a folder with --out")
    if record.is_file():
        try:
            study: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
            differences = settings.differences(study["settings"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FolderError(f"{record} cannot be read ({error}); name another folder with --out") from error
        if differences:
            raise FolderError(
                f"{folder} holds results of other settings ({'; '.join(differences)}); name another folder with --out, "
                "or remove it"
            )
        return study
    if folder.is_dir() and any(folder.iterdir()):
        raise FolderError(f"{folder} is not empty and holds no demo results; name a new folder with --out")
    study = {
        "settings": settings.as_dict(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "wall_seconds": 0.0,
    }
    try:
        (folder / "runs").mkdir(parents=True, exist_ok=True)
        _write_json(record, study)
    except OSError as error:
        raise FolderError(f"cannot write to {folder} ({error.strerror}); name another folder with --out") from error
    return study


def _finished(folder: Path, job: Job) -> bool:
    return (folder / "runs" / job.name / "run.json").is_file()


def _run_jobs(folder: Path, settings: Settings, jobs: list[Job], workers: int, total: int) -> list[str]:
    """Run `jobs` in worker processes; a sentence for each that failed."""
    if not jobs:
        return []
    failures = []
    context = multiprocessing.get_context("spawn")  # forking a process that has used torch's threads may deadlock
    events = context.SimpleQueue()
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, _start_worker, (events,))
    with Progress(events, finished=total - len(jobs), total=total):
        pending: dict[Future[str | None], Job] = {pool.submit(_run, folder, settings, job): job for job in jobs}
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
    torch.set_num_threads(1)  # two busy processes of two threads each are many times slower
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means


def _run(folder: Path, settings: Settings, job: Job) -> str | None:
    """Train and measure one twin; a sentence if it failed. The record is written last: a run without one is undone."""
    report = reporter(_events, job.name)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", solvers.SolverWarning)
            record, rows, traces, weights = _train_and_measure(settings, job, report)
        record["warnings"] = sorted({str(warning.message) for warning in caught})
        target = folder / "runs" / job.name
        target.mkdir(parents=True, exist_ok=True)
        save_file(weights, target / "model.safetensors")
        if traces:
            np.savez_compressed(target / "trace.npz", **traces)
        _write_json(target / "run.json", {**record, "rows": rows})
    except Exception as error:  # of whatever kind: the other runs go on, and the user is told
        return f"{type(error).__name__}: {error}"
    finally:
        report(Event.END, "")
    return None


def _train_and_measure(settings: Settings, job: Job, report: Any) -> tuple[dict[str, Any], list[Any], Any, Any]:
    model = build_twin(job.attention, settings, job.seed)
    train, test = (
        _head(fashion_mnist("train"), settings.train_images),
        _head(fashion_mnist("test"), settings.test_images),
    )
    started = time.process_time()
    history = fit(
        model,
        train,
        settings.recipe,
        seed=job.seed,
        augment=flip_and_shift,
        progress=lambda update, updates: report(Event.TRAINED, update / updates),
    )
    seconds = time.process_time() - started

    def tick(what: str) -> None:
        report(Event.MEASURED, what)

    rows = [*measure_robustness(model, test, settings, tick), *measure_solvers(model, test, settings, tick)]
    has_solver = bool(vars_layers(model))
    traces = measure_traces(model, test, tick) if has_solver else None
    record = {
        "attention": job.attention,
        "seed": job.seed,
        "solver": settings.solver if has_solver else EXACT,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "train_seconds": seconds,
        "history": history,
        "final_loss": history[-1]["loss"],
    }
    return record, rows, traces, {name: tensor.contiguous() for name, tensor in model.state_dict().items()}


def _head(data: TensorDataset, count: int) -> TensorDataset:
    return TensorDataset(*(tensor[:count] for tensor in data.tensors))


def _gather(folder: Path, study: dict[str, Any], command: str) -> None:
    """results.csv and results.json out of all the finished runs in the folder."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("runs/*/run.json"))]
    with (folder / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for record in records:
            keys = {"attention": record["attention"], "seed": record["seed"]}
            writer.writerows({**keys, **row} for row in record.pop("rows"))
    _write_json(folder / "results.json", {**study, "versions": versions(), "command": command, "runs": records})


def versions() -> dict[str, str]:
    packages = ("vars-ode", "torch", "timm", "torchdiffeq", "torchode", "numpy", "scipy")
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
        "platform": f"{sys.platform} {platform.machine()}",
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Written beside its place and moved there, so that a file is whole or absent."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
    partial.replace(path)
