"""How far long work is, on stderr: a bar on a terminal, else a line now and then."""

__all__ = ["show_progress"]

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from itertools import chain, repeat

from doge_export.cli._signals import raise_if_interrupted
from doge_export.core.progress import Progress, silent

_log = logging.getLogger(__name__)

#: Seconds before the first line, and between one line and the next: what is short stays without.
_WAITS = (10, 10, 20, 40, 60)


@contextlib.contextmanager
def show_progress(work: str, total: int | None = None) -> Generator[Progress]:
    """A bar on stderr; where stderr is no terminal, or under CI, lines in the log; nothing with -q.

    `work` is the bar's text, with the stage behind it. `total`: how much there is, where it is known.
    """
    if logging.getLogger("doge_export").getEffectiveLevel() > logging.WARNING:
        yield _Interruptible(silent)
    elif os.environ.get("CI") or not sys.stderr.isatty():
        with _written(Lines(work, total)) as lines:
            yield _Interruptible(lines)
    else:
        with _drawn(work, total) as bar:
            yield _Interruptible(bar)


class _Interruptible:
    """Ends the work at its next report where a library has swallowed what a signal raised."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __call__(self, done: int = 1, stage: str = "") -> None:
        raise_if_interrupted()
        self._progress(done, stage)

    def planned(self, total: int) -> None:
        raise_if_interrupted()
        self._progress.planned(total)


@contextlib.contextmanager
def _drawn(work: str, total: int | None) -> Generator[Progress]:
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(work, total=total)

        class Bar:
            def __call__(self, done: int = 1, stage: str = "") -> None:
                if stage:
                    bars.update(task, description=f"{work}: {stage}")
                bars.advance(task, done)

            def planned(self, total: int) -> None:
                bars.update(task, total=total)

        yield Bar()


@contextlib.contextmanager
def _written(lines: "Lines") -> Generator["Lines"]:
    """A thread writes the lines, since a stage may take minutes without a call."""
    ended = threading.Event()
    writer = threading.Thread(target=lines.write, args=(ended.wait,), name="progress", daemon=True)
    writer.start()
    try:
        yield lines
    finally:
        ended.set()
        writer.join()


class Lines:
    """What is known of some work, as lines in the log: "Quantizing: layers.3.mlp.down_proj, 34 % (0:41)"."""

    def __init__(
        self, work: str, total: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._work, self._stage, self._total, self._done = work, "", total, 0
        self._clock, self._begun = clock, clock()

    def __call__(self, done: int = 1, stage: str = "") -> None:
        self._done += done
        self._stage = stage or self._stage

    def planned(self, total: int) -> None:
        self._total = total

    def write(self, wait: Callable[[float], bool]) -> None:
        """Log a line whenever one is due, until `wait`, given seconds, says that the work has ended."""
        for seconds in _distances():
            if wait(seconds):
                return
            _log.info("%s", self.line())

    def line(self) -> str:
        """What is known now."""
        text = f"{self._work}: {self._stage}" if self._stage else self._work
        if self._total:
            text += f", {min(100 * self._done // self._total, 100)} %"
        minutes, seconds = divmod(int(self._clock() - self._begun), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{text} ({hours}:{minutes:02}:{seconds:02})" if hours else f"{text} ({minutes}:{seconds:02})"


def _distances() -> Iterator[int]:
    return chain(_WAITS, repeat(_WAITS[-1]))
