"""Folders that exist while something is done. They are locked, and the lock ends with its process, however
that ends: a folder without a lock is a leftover."""

__all__ = ["TOKEN", "locked", "locked_folder", "temporary_folder"]

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path

#: What a random token looks like.
TOKEN = "[0-9a-f]{8}"
_TEMPORARY = re.compile(rf"doge-export-{TOKEN}\.tmp")


@contextlib.contextmanager
def locked_folder(parent: Path, name: str, mode: int = 0o777) -> Generator[Path]:
    """Make a new folder, locked, of the `name` with a random token for its {}. It is removed at the end, if
    it still has that name."""
    held = False
    while not held:
        folder = parent / name.format(secrets.token_hex(4))
        try:  # first: a signal may come as soon as the folder is there
            folder.mkdir(mode)  # not tempfile.mkdtemp, which hides the folder from everybody else
            with locked(folder) as free:
                held = free is not False  # or else it was taken for a leftover just now
                if held:
                    yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path) -> Generator[bool | None]:
    """Hold the lock of a folder. Yields whether it was free and the folder is still there; None where there
    are no locks."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        yield False
        return
    try:
        yield _taken(descriptor, folder)
    finally:
        os.close(descriptor)


def _taken(descriptor: int, folder: Path) -> bool | None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        here, held = folder.stat(), os.fstat(descriptor)
    except (BlockingIOError, FileNotFoundError):
        return False
    except OSError:
        return None
    return (here.st_dev, here.st_ino) == (held.st_dev, held.st_ino)


@contextlib.contextmanager
def temporary_folder() -> Generator[Path]:
    """A new folder in the system's temporary one, for as long as this lasts. Those that killed processes of
    this user left there are removed."""
    root = Path(tempfile.gettempdir())
    with contextlib.suppress(OSError), os.scandir(root) as entries:
        for entry in entries:
            if _TEMPORARY.fullmatch(entry.name) and entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                with locked(Path(entry.path)) as free:
                    if free:
                        shutil.rmtree(entry.path, ignore_errors=True)
    with locked_folder(root, "doge-export-{}.tmp", 0o700) as folder:
        yield folder
