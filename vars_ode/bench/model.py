"""RVT-Ti with each attention: forward pass and training step, and how much faster than another checkout."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from vars_ode.measuring import check_device

ATTENTIONS = ("softmax", "performer", "vars-s", "vars-d", "vars-sd")
EARLIER_NAMES = {"softmax": "self-attention"}  # which all revisions know
AGREEMENT = 1e-3  # of logits, relative to the largest: rounding, through twelve blocks
OWN = Path(__file__).parents[2]

Run = tuple[str, str]  # attention and what is measured
Times = dict[Run, float]


@dataclass(frozen=True)
class ModelRow:
    """Milliseconds of one attention's model, and what they are compared with.

    Attributes:
        measured: "forward", "training step", the same compiled, and "fused forward", after `fuse()`.
        over_softmax: over the same with softmax attention.
        over_eager: of what is compiled or fused, over what is not.
        speedup: the other checkout's time, over this; of what is fused, that of its forward pass.
        difference: of both checkouts' logits, relative to the largest.
    """

    attention: str
    measured: str
    milliseconds: float
    over_softmax: float | None
    over_eager: float | None = None
    speedup: float | None = None
    difference: float | None = None


def model(
    repeats: int = 9,
    attentions: Sequence[str] = ATTENTIONS,
    batch: int = 8,
    img_size: int = 224,
    device: str = "cpu",
    compiled: bool = False,
    against: str | None = None,
) -> list[ModelRow]:
    """RVT-Ti (`rvt_tiny`, revision "paper") on a batch of random images, float32: medians of runs that take turns.

    Each checkout runs in a process of its own, one of them at a time, from the same seed; a training step is a forward
    and backward pass and an update by AdamW.

    Args:
        repeats: turns, after one that warms up.
        attentions: out of the five of the paper's comparison.
        batch, img_size: of the images.
        device: where.
        compiled: under torch.compile too.
        against: another checkout of this project that has the same models.

    Raises:
        ValueError: `against` is no such checkout, or its logits are others.
    """
    check_device(device)
    other_checkout = _checkout(against) if against else None
    setting = {"batch": batch, "img_size": img_size, "device": device}
    with ExitStack() as stack:
        own = stack.enter_context(Worker(OWN))
        built = {name: own.build(name, compiled=compiled, **setting) for name in attentions}
        runs = [(name, measured) for name in attentions for measured in built[name]["runs"]]
        if other_checkout is None:
            (times,) = _in_turns([(own, runs)], repeats)
            return [_row(run, times) for run in runs]
        other = stack.enter_context(Worker(other_checkout))
        difference = {}
        for name in attentions:
            earlier = other.build(name, compiled=False, **setting)
            difference[name] = _difference(name, built[name]["logits"], earlier["logits"])
        shared = [(name, measured) for name in attentions for measured in ("forward", "training step")]
        times, theirs = _in_turns([(own, runs), (other, shared)], repeats)
    return [_row(run, times, theirs, difference[run[0]]) for run in runs]


def _checkout(path: str) -> Path:
    if not (Path(path) / "vars_ode" / "__init__.py").is_file():
        raise ValueError(f"{path} is no checkout of this project: it has no vars_ode/__init__.py")
    return Path(path).resolve()


def _in_turns(workers: Sequence[tuple["Worker", Sequence[Run]]], repeats: int) -> list[Times]:
    """Medians of each worker's runs; those of one attention follow each other."""
    records: list[dict[Run, list[float]]] = [{run: [] for run in runs} for _, runs in workers]
    for turn in range(repeats + 1):
        for run in dict.fromkeys(run for _, runs in workers for run in runs):
            for (worker, _), record in zip(workers, records, strict=True):
                if run in record:
                    milliseconds = worker.measure(run)
                    record[run] += [milliseconds] if turn else []  # the first turn warms up
    return [{run: statistics.median(times) for run, times in record.items()} for record in records]


def _row(run: Run, times: Times, theirs: Times | None = None, difference: float | None = None) -> ModelRow:
    name, measured = run
    plain = measured.removeprefix("compiled ").removeprefix("fused ")
    softmax = times.get(("softmax", measured))
    return ModelRow(
        name,
        measured,
        times[run],
        times[run] / softmax if softmax else None,
        None if plain == measured else times[run] / times[name, plain],
        theirs[name, plain] / times[run] if theirs else None,
        difference,
    )


def _difference(name: str, ours: Any, theirs: Any) -> float:
    a, b = torch.tensor(ours), torch.tensor(theirs)
    difference = float((a - b).abs().max() / b.abs().max()) if a.shape == b.shape else float("inf")
    if not difference < AGREEMENT:
        raise ValueError(
            f"the two checkouts' models with attention={name!r} disagree by {difference:.2g} of their logits: times of "
            "different computations do not compare"
        )
    return difference


class Worker:
    """A process that runs models of one checkout (`vars_ode.bench.worker`), from its folder.

    Args:
        checkout: the folder that holds `vars_ode` and `solvers`.
    """

    def __init__(self, checkout: Path) -> None:
        self.checkout = checkout
        code = (Path(__file__).parent / "worker.py").read_text(encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=self.checkout,  # whose packages are found first, before an installed one
            env={**os.environ, "PYTHONPATH": str(self.checkout)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        found = Path(self._answer()["imported"])
        if self.checkout not in found.parents:
            self.close()
            raise ValueError(f"asked for the models of {self.checkout}, python imports those of {found.parent}")

    def build(self, attention: str, **setting: Any) -> dict[str, Any]:
        """Build the models of one attention: {"runs": names, "logits": of the forward pass}."""
        return self._ask(do="build", attention=attention, name=EARLIER_NAMES.get(attention, attention), **setting)

    def measure(self, run: Run) -> float:
        """The milliseconds of a run."""
        return float(self._ask(do="measure", run=" ".join(run))["ms"])

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.communicate()

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ValueError(f"the process that runs {self.checkout} ended with {self._process.wait()}; see above")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ValueError(f"{self.checkout}: {answer['error']}")
        return answer

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
