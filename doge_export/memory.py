"""Memory that was freed, back to the system."""

__all__ = ["release_memory"]

import ctypes
import functools
import sys
from collections.abc import Callable


@functools.cache
def _trim() -> Callable[[int], int]:
    found = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    return found or (lambda kept: 0)


def release_memory() -> None:
    """glibc keeps what was freed, differently much each time; where it is the allocator, have it let go. It
    takes about a millisecond."""
    _trim()(0)
