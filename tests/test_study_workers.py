"""The worker processes of a study end with it."""

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from demo_cases import TINY
from workers import forkserver, in_place_of_spawn

from vars_ode.files import write_json
from vars_ode.study.run import run_study

LONG = replace(TINY, recipe=replace(TINY.recipe, epochs=100_000))


def run_for_hours(folder: Path, told: Path) -> None:
    """A study, which writes the ids of its workers down as soon as they have started."""

    def tell() -> None:
        while len(workers := multiprocessing.active_children()) < 2:
            time.sleep(0.05)
        write_json(told, [worker.pid for worker in workers])

    threading.Thread(target=tell, daemon=True).start()
    with in_place_of_spawn():
        run_study(folder, LONG, ("softmax", "vars-d"), seeds=1, workers=2)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="these signals are POSIX's")
@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_workers_end_with_a_study_that_is_killed(how: str, tmp_path: Path) -> None:
    told = tmp_path / "workers.json"
    study = forkserver().Process(target=run_for_hours, args=(tmp_path / "out", told))
    study.start()
    workers: list[int] = []
    try:
        assert wait_for(told.exists)
        workers = json.loads(told.read_text())
        assert all(map(is_alive, workers))
        os.kill(study.pid or 0, getattr(signal, how))
        study.join(30)
        assert study.exitcode == -getattr(signal, how)
        assert wait_for(lambda: not any(map(is_alive, workers)), 30)
    finally:
        study.kill()
        for pid in filter(is_alive, workers):
            os.kill(pid, signal.SIGKILL)
