import sys
from pathlib import Path

import pytest

from doge_export.core.memory import release_memory


def resident_pages() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator, and its figures in /proc")
def test_what_was_freed_goes_back() -> None:
    """Pieces too small for a mapping of their own, with a living one above them."""
    pieces = [bytes(60_000) for _ in range(1000)]
    assert all(pieces)
    above = bytes(60_000)
    del pieces
    before = resident_pages()
    release_memory()
    assert resident_pages() < before - 30_000_000 // 4096
    assert above
