"""What a killed process left beside an output."""

__all__ = ["aside", "kept_aside", "put_back", "remove_stale"]

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from doge_export.core.bundle.ownership import is_ours
from doge_export.core.errors import DogeExportError
from doge_export.core.temporary import TOKEN, locked

_log = logging.getLogger(__name__)


def kept_aside(output: Path) -> Path | None:
    """The folder that is the only copy of an `output` whose replacement was cut off between its two steps."""
    output = Path(os.path.realpath(output))  # of links in a circle too
    if output.exists():
        return None
    olds = [old for old in _left(output, "old") if not _busy(old.with_suffix(".partial"))]
    return max(olds, key=lambda old: old.stat().st_mtime_ns, default=None)


def put_back(output: Path) -> None:
    """Put the only copy in its place again, if there is one aside, and say so."""
    old = kept_aside(output)
    if old is not None:
        with contextlib.suppress(OSError):  # somebody else was faster
            old.rename(output)
            _log.warning(
                "The last replacement of %s was cut off: what it was before is in its place again.", output
            )


def remove_stale(output: Path) -> None:
    """Remove half-written folders of `output` whose process is gone, and what was replaced."""
    for partial in _left(output, "partial"):
        with locked(partial) as free:
            if free:
                shutil.rmtree(partial, ignore_errors=True)
                _log.info("Removed %s, which a killed run left half-written.", partial)
    for old in _left(output, "old"):
        if _busy(old.with_suffix(".partial")):
            continue
        with contextlib.suppress(DogeExportError):
            if is_ours(old):
                shutil.rmtree(old, ignore_errors=True)
                continue
        _log.warning("%s is what %s was before it was replaced; remove it if all is well.", old, output)


def aside(partial: Path) -> Path:
    """Return where the old output goes while the folder at `partial` takes its place."""
    return partial.with_suffix(".old")


def _busy(folder: Path) -> bool:
    if not folder.exists():
        return False
    with locked(folder) as free:
        return not free


def _left(output: Path, kind: str) -> Iterator[Path]:
    name = re.compile(rf"\.{re.escape(output.name)}\.{TOKEN}\.{kind}")
    with contextlib.suppress(OSError), os.scandir(output.parent) as entries:
        for entry in entries:
            if name.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                yield Path(entry.path)
