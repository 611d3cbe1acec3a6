"""Progress bars for work that happens in other processes."""

import sys
import threading
from collections.abc import Callable
from enum import Enum
from typing import Any

from tqdm import tqdm


class Event(Enum):
    """What a worker reports: the fraction of its training that is done, what it measures, or that it has ended."""

    TRAINED = "trained"
    MEASURED = "measured"
    END = "end"


def reporter(events: Any, run: str) -> Callable[[Event, Any], None]:
    """A function for a worker to report with: `report(Event.TRAINED, 0.25)`."""

    def report(event: Event, value: Any) -> None:
        if events is not None:
            events.put((run, event, value))

    return report


class Progress:
    """A bar for all runs, and on a terminal one for each active run. Events are read in a thread.

    Args:
        events: a queue that workers put (run, event, value) into.
        finished: runs from an earlier start.
        total: all runs.
    """

    def __init__(self, events: Any, finished: int, total: int) -> None:
        self._events = events
        self._interactive = sys.stderr.isatty()
        self._overall = tqdm(total=total, initial=finished, desc="runs", unit="run", dynamic_ncols=True)
        self._bars: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> "Progress":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is None:
            self._events.put(None)
            self._thread.join()
        # otherwise a worker may have been killed while it held the queue's lock: do not wait for the thread
        for bar in self._bars.values():
            bar.close()
        self._overall.close()

    def _listen(self) -> None:
        while (message := self._events.get()) is not None:
            run, event, value = message
            if event is Event.END:
                self._end(run)
            elif self._interactive:
                self._show(run, event, value)

    def _show(self, run: str, event: Event, value: Any) -> None:
        if run not in self._bars:
            layout = "  {desc:<34} {percentage:3.0f}% |{bar:24}| {postfix}"
            self._bars[run] = tqdm(total=100, desc=run, leave=False, bar_format=layout, position=len(self._bars) + 1)
        bar = self._bars[run]
        if event is Event.TRAINED:
            bar.n = round(100 * value)
            bar.set_postfix_str("training", refresh=False)
        else:
            bar.set_postfix_str(f"measuring: {value}", refresh=False)
        bar.update(0)

    def _end(self, run: str) -> None:
        bar = self._bars.pop(run, None)
        if bar is not None:
            bar.close()
        self._overall.update()
        if not self._interactive:
            self._overall.write(f"{run}: finished", file=sys.stderr)
