"""Ctrl-C while a command loads its libraries, which takes seconds, ends it with a word instead of a traceback."""

import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path

STOPPED = 130  # as shells report a command that Ctrl-C ended


def stop_quietly() -> None:
    """From now on Ctrl-C ends the process, if it is `vars-ode` or a worker of it; programs of others are left alone.

    A command takes its own handling up when it starts. The process ends at once, since an exception in the middle of an
    import would be swallowed or changed on its way.
    """
    main = threading.current_thread() is threading.main_thread()
    if _is_command() and main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop)


def _is_command() -> bool:
    module = any(pair == ("-m", "vars_ode") for pair in zip(sys.orig_argv, sys.orig_argv[1:], strict=False))
    return module or Path(sys.argv[0] if sys.argv else "").stem == "vars-ode"


def _stop(number: int, frame: object) -> None:
    if multiprocessing.parent_process() is None:  # workers are silent
        os.write(2, b"\nStopped.\n")
    os._exit(STOPPED)
