"""What the caches of a server may take, in memory and on disk."""

__all__ = ["CacheLimits"]

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CacheLimits:
    """`prefix_bytes`: of beginnings of texts that are kept for texts to come, 0 for none. `state_folder`:
    where they are kept on disk, too, if anywhere, and `state_bytes` of them. `cache_bytes`: of the caches of
    all texts that are being made; None is no limit."""

    prefix_bytes: int = 256 << 20
    state_folder: Path | None = None
    state_bytes: int = 4 << 30
    cache_bytes: int | None = None

    @property
    def description(self) -> str:
        """The limits in a sentence."""
        caches = "no limit" if self.cache_bytes is None else _mebibytes(self.cache_bytes)
        said = f"Caches of texts: {caches}; beginnings that are kept: {_mebibytes(self.prefix_bytes)}"
        if self.state_folder is None:
            return said
        return f"{said}, and {_mebibytes(self.state_bytes)} in {self.state_folder}"


def _mebibytes(number: int) -> str:
    return f"{number / (1 << 20):,.1f} MiB"
