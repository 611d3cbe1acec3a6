"""Worker processes end with the process that started them, however that ends."""

import multiprocessing
import os
import threading
from multiprocessing.process import BaseProcess


def end_with_parent() -> None:
    """Let this process end as soon as its parent has, also where that was killed; called in a worker.

    A thread waits on the pipe that multiprocessing keeps open for as long as the parent lives, so it works on every
    system and asks nothing of a parent that SIGKILL gives no time.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)  # not sys.exit, which ends this thread alone; what is half written is a temporary file
