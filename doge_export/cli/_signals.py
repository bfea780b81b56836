"""What Ctrl-C and SIGTERM do: they unwind the stack, so that half-written folders are removed."""

__all__ = ["interrupted", "raise_if_interrupted", "unwound_by_signals"]

import contextlib
import signal
import threading
from collections.abc import Generator
from types import FrameType

_came = threading.Event()


@contextlib.contextmanager
def unwound_by_signals() -> Generator[None]:
    """Let SIGTERM and SIGINT raise KeyboardInterrupt meanwhile, and remember that one came.

    Where SIGINT is ignored, as in a background job of a shell, it stays so.
    """
    _came.clear()
    before = {}
    if threading.current_thread() is threading.main_thread():  # elsewhere the caller has its own plan
        for each in (signal.SIGTERM, signal.SIGINT):
            if each == signal.SIGTERM or signal.getsignal(each) is signal.default_int_handler:
                before[each] = signal.signal(each, _interrupt)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def interrupted() -> bool:
    """Whether a signal has come: what it raised inside a library's C++ may come out as any other error."""
    return _came.is_set()


def raise_if_interrupted() -> None:
    """Raise KeyboardInterrupt where a signal has come: a library may have swallowed what it raised."""
    if _came.is_set():
        raise KeyboardInterrupt


def _interrupt(number: int, frame: FrameType | None) -> None:
    _came.set()
    raise KeyboardInterrupt
