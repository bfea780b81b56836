"""How much memory there is, and what was freed back to the system."""

__all__ = ["available_memory", "release_memory"]

import ctypes
import re
import sys
from pathlib import Path


def available_memory() -> int | None:
    """The bytes that a process can have without the system swapping; None where the system does not say."""
    try:
        match = re.search(r"^MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None


def release_memory() -> None:
    """Give freed memory back to the system where glibc is the allocator, which else keeps some of it,
    differently much each time. It takes about a millisecond."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
