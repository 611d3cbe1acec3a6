"""Runs models in a process of its own, for `vars-ode bench model`: requests and answers are lines of JSON.

The source of this module is run in the folder of the checkout to be measured, and uses what all revisions have:
`timm.create_model("rvt_tiny", attention=..., revision=...)`.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn

from vars_ode import models  # registers them with timm

RUNS: dict[str, Callable[[], object]] = {}


def build(attention: str, name: str, batch: int, img_size: int, device: str, compiled: bool) -> dict[str, Any]:
    """Make the runs of one attention, which the models know as `name`; their names, and the logits of the images."""
    images = torch.randn(batch, 3, img_size, img_size, generator=torch.Generator().manual_seed(0)).to(device)
    forward = _forward(_model(name, img_size, device), images)
    runs: dict[str, Callable[[], object]] = {"forward": forward}
    runs["training step"] = _training_step(_model(name, img_size, device), images)
    if compiled:
        runs["compiled forward"] = _forward(_compiled(_model(name, img_size, device)), images)
        runs["compiled training step"] = _training_step(_compiled(_model(name, img_size, device)), images)
    fusable: Any = _model(name, img_size, device).eval()
    if hasattr(fusable, "fuse"):
        runs["fused forward"] = _forward(fusable.fuse(), images)
    RUNS.update({f"{attention} {measured}": run for measured, run in runs.items()})
    return {"runs": list(runs), "logits": forward().tolist()}


def measure(run: str) -> dict[str, Any]:
    """The milliseconds of one run; without a GPU those of the processor, without waits for other processes."""
    on_gpu = torch.cuda.is_available()
    clock = time.perf_counter if on_gpu else time.process_time
    started = clock()
    RUNS[run]()
    if on_gpu:
        torch.cuda.synchronize()
    return {"ms": 1e3 * (clock() - started)}


def _model(attention: str, img_size: int, device: str) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("rvt_tiny", attention=attention, revision="paper", img_size=img_size).to(device)


def _compiled(model: nn.Module) -> Any:
    return torch.compile(model, fullgraph=True)


def _forward(model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    model.eval()

    @torch.no_grad()
    def run() -> Tensor:
        logits: Tensor = model(images)
        return logits

    return run


def _training_step(model: nn.Module, images: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-4)
    labels = torch.arange(len(images), device=images.device)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def serve() -> None:
    """Answer requests until there are no more; what libraries print goes to the standard error."""
    answers, sys.stdout = sys.stdout, sys.stderr
    torch.set_num_threads(1)
    print(json.dumps({"imported": models.__file__}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = build(**request) if request.pop("do") == "build" else measure(**request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve()
