"""Memory that was freed, back to the system."""

__all__ = ["release_memory"]

import ctypes
import sys


def release_memory() -> None:
    """glibc keeps what was freed, differently much each time; where it is the allocator, have it let go. It
    takes about a millisecond."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
