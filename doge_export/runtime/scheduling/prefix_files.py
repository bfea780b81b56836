"""Beginnings of texts on disk, which outlive the server: a file each, found again by what its name says."""

__all__ = ["PrefixFiles", "identity_of"]

import contextlib
import functools
import hashlib
import logging
import os
import re
import secrets
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from doge_export import __version__
from doge_export.core.errors import DogeExportError
from doge_export.core.native_library import instruction_set
from doge_export.runtime.session import Session
from doge_export.runtime.slot_pool import Snapshot

_log = logging.getLogger(__name__)

_NAME = re.compile(r"([0-9a-f]{32})-([0-9a-f]{32})-([1-9]\d{0,9})\.doge-prefix")
_PART = re.compile(_NAME.pattern + r"\.[0-9a-f]{8}\.tmp")
_STALE = 3600  # seconds after which a file that is being written has no writer any more
_PENDING = 16  # snapshots that wait to be written; an older one goes then
_LAST_WORDS = 5  # seconds that the end waits for what is not written yet
_MAX_PARTS = 16  # arrays of a file


def identity_of(session: Session) -> str:
    """Return what says whose bits a snapshot has: the model's files, and all that computes with them. The
    loops of another processor may round otherwise."""
    lines = [f"{entry.sha256} {name}" for name, entry in sorted(session.bundle.files.items())]
    lines += [f"{name} {version}" for name, version in sorted(session.versions.items())]
    if session.library is not None:
        lines += [instruction_set(session.library), hashlib.sha256(session.library.read_bytes()).hexdigest()]
    text = "\n".join((__version__, onnxruntime.__version__, *lines))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class PrefixFiles:
    """Snapshots in the files of a folder, `capacity` bytes of them, those of other models and servers counted
    in; the one that was used longest ago goes first.

    A thread of its own reads and writes, so that nobody who makes tokens waits for the disk. A file appears
    whole, is checked when it is read, and removed where it is damaged. What the disk refuses is one warning.

    Raises:
        DogeExportError: there is something else where the folder should be.
    """

    def __init__(self, folder: Path, identity: str, capacity: int) -> None:
        self._folder, self._identity, self._capacity = folder, identity, capacity
        self._warned = False
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # texts can be guessed from what is in it
        except (FileExistsError, NotADirectoryError):
            raise DogeExportError(f"{folder} is no folder.", "Give --state-dir a folder, or none.") from None
        except OSError as error:
            self._warn("cannot be made", error)
        self._known: Mapping[bytes, int] = {}  # key -> tokens; replaced as a whole, never changed
        self._loading: dict[bytes, Future[Snapshot | None]] = {}
        self._reads: deque[bytes] = deque()
        self._writes: deque[tuple[bytes, Snapshot]] = deque()
        self._used: set[bytes] = set()
        self._work, self._closed = threading.Condition(), False
        self._look()
        self._thread = threading.Thread(target=self._run, name="prefix files", daemon=True)
        self._thread.start()

    @property
    def lengths(self) -> set[int]:
        """Of the texts that there are."""
        return set(self._known.values())

    def has(self, key: bytes) -> bool:
        """Whether there is a file."""
        return key in self._known

    def load(self, key: bytes) -> "Future[Snapshot | None]":
        """Begin to read one; its result is None where it is gone or damaged."""
        with self._work:
            if key not in self._loading:
                self._loading[key] = Future()
                self._reads.append(key)
                self._work.notify()
            return self._loading[key]

    def keep(self, key: bytes, snapshot: Snapshot) -> None:
        """Write one when there is time."""
        with self._work:
            if len(self._writes) == _PENDING:
                self._writes.popleft()
            self._writes.append((key, snapshot))
            self._work.notify()

    def touch(self, key: bytes) -> None:
        """Say that one was used."""
        if key in self._known:
            with self._work:
                self._used.add(key)
                self._work.notify()

    def close(self) -> None:
        """Write what waits for it, and end the thread, in a few seconds at most."""
        with self._work:
            self._closed = True
            self._work.notify()
        self._thread.join(_LAST_WORDS)

    def _run(self) -> None:
        while True:
            with self._work:
                self._work.wait_for(lambda: self._reads or self._writes or self._used or self._closed)
                read = self._reads.popleft() if self._reads else None
                write = self._writes.popleft() if read is None and self._writes else None
                used, self._used = self._used, set()
                if read is None and write is None and not used:
                    return  # closed
            for key in used:
                self._try("marked as used", functools.partial(os.utime, self._path(key)), FileNotFoundError)
            if write is not None:
                self._try("written", functools.partial(self._write, *write))
                self._look()
            if read is not None:
                snapshot = self._read(read)
                with self._work:
                    loading = self._loading.pop(read)
                loading.set_result(snapshot)

    def _path(self, key: bytes, length: int | None = None) -> Path:
        length = self._known.get(key, 0) if length is None else length
        return self._folder / f"{self._identity}-{key.hex()}-{length}.doge-prefix"

    def _look(self) -> None:
        """See what there is; remove the oldest of what is too much, and what a dead writer left."""
        found: list[tuple[float, int, Path]] = []
        known = {}
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    name, part = _NAME.fullmatch(entry.name), _PART.fullmatch(entry.name)
                    with contextlib.suppress(OSError):  # another server may have removed it
                        status = entry.stat(follow_symlinks=False)
                        if not (name or part) or not stat.S_ISREG(status.st_mode):
                            continue
                        if name is not None:
                            found.append((status.st_mtime, status.st_size, Path(entry.path)))
                        if name is not None and name[1] == self._identity:
                            known[bytes.fromhex(name[2])] = int(name[3])
                        if part is not None and status.st_mtime < time.time() - _STALE:
                            Path(entry.path).unlink()
        except OSError as error:
            self._warn("cannot be looked through", error)
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self._capacity:
                break
            total -= size
            self._try("removed", path.unlink, FileNotFoundError)
            if (name := _NAME.fullmatch(path.name)) is not None and name[1] == self._identity:
                known.pop(bytes.fromhex(name[2]), None)
        self._known = known

    def _write(self, key: bytes, snapshot: Snapshot) -> None:
        if snapshot.bytes > self._capacity or self.has(key):
            return
        path = self._path(key, snapshot.length)
        part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                for array in (*snapshot.parts, _digest(path.name, snapshot.parts)):
                    np.lib.format.write_array(file, array, allow_pickle=False)
            part.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink()
            raise

    def _read(self, key: bytes) -> Snapshot | None:
        path, length = self._path(key), self._known.get(key, 0)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            with os.fdopen(descriptor, "rb") as file:
                *parts, digest = _arrays(file)
            if digest.tobytes() == _digest(path.name, parts).tobytes():
                return Snapshot(length, tuple(parts))
            problem = "it is not what was written"
        except FileNotFoundError:
            problem = ""  # another server removed it
        except Exception as error:  # whatever a damaged file does to numpy's reader
            problem = str(error).partition("\n")[0]
        self._known = {other: tokens for other, tokens in self._known.items() if other != key}
        if problem:
            _log.warning("%s is damaged and goes: %s.", path, problem.rstrip("."))
            self._try("removed", path.unlink, FileNotFoundError)
        return None

    def _try(self, what: str, do: Callable[[], Any], *harmless: type[OSError]) -> None:
        try:
            do()
        except (OSError, MemoryError) as error:  # the thread goes on: others wait for what it reads
            if not isinstance(error, harmless):
                self._warn(f"has files that cannot be {what}", error)

    def _warn(self, what: str, error: Exception) -> None:
        """Say it once: the disk is not what the server is for."""
        if not self._warned:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            _log.warning(
                "%s %s: %s. Beginnings of texts are kept in memory alone as long as that is so.",
                self._folder,
                what,
                reason.rstrip("."),
            )
        self._warned = True


def _arrays(file: IO[bytes]) -> list[npt.NDArray[Any]]:
    """Return the arrays that stand one after another in a file of numpy's format."""
    size, arrays = os.fstat(file.fileno()).st_size, []
    while file.tell() < size:
        arrays.append(np.lib.format.read_array(file, allow_pickle=False))
        if len(arrays) > _MAX_PARTS:
            raise ValueError("it has too many parts")
    return arrays


def _digest(name: str, parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.uint8]:
    """Return a hash of arrays under a name."""
    running = hashlib.blake2b(name.encode(), digest_size=32)
    for part in parts:
        running.update(f"{part.dtype.str} {part.shape}".encode())
        running.update(np.ascontiguousarray(part).data.cast("B"))
    return np.frombuffer(running.digest(), np.uint8)
