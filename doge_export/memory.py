"""How much memory there is, and what was freed back to the system."""

__all__ = ["available_memory", "release_memory"]

import ctypes
import re
import sys
from pathlib import Path


def available_memory() -> int | None:
    """Bytes that a process can have without the system swapping; None where nobody says."""
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def release_memory() -> None:
    """glibc keeps what was freed, differently much each time; where it is the allocator, have it let go. It
    takes about a millisecond."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
