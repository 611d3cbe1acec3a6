"""Prints the processor time of `import vars_ode` beside that of importing torch and timm, each in fresh processes."""

import resource
import statistics
import subprocess
import sys

REPEATS = 5
CODES = {
    "import torch, timm": "import torch, timm",
    "import vars_ode": "import vars_ode",
    "vars-ode --help": "from vars_ode.cli import app\ntry: app(['--help'])\nexcept SystemExit: pass",
}


def processor_seconds(code: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    for code in CODES.values():
        processor_seconds(code)  # byte code and file cache are there afterwards
    rounds = [{name: processor_seconds(code) for name, code in CODES.items()} for _ in range(REPEATS)]  # in turns
    base, *_ = medians = [statistics.median(times[name] for times in rounds) for name in CODES]
    for name, seconds in zip(CODES, medians, strict=True):
        print(f"{name:20} {seconds:6.2f} s of processor time, {seconds / base:5.2f} times torch and timm")
