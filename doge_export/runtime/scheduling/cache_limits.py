"""What the caches of a server may take, in memory and on disk."""

__all__ = ["CacheLimits"]

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CacheLimits:
    """`prefix_bytes`: of beginnings of texts that are kept for texts to come, 0 for none. `state_folder`:
    where they are kept on disk, too, if anywhere, and `state_bytes` of them."""

    prefix_bytes: int = 256 << 20
    state_folder: Path | None = None
    state_bytes: int = 4 << 30
