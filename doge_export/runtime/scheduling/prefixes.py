"""Beginnings of texts that were read before: rows outside the pool, found again by their tokens."""

__all__ = ["Loading", "PrefixStore", "keys_of"]

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from doge_export.runtime.scheduling.prefix_files import PrefixFiles
from doge_export.runtime.slot_pool import Snapshot

_Key = bytes


@dataclass(frozen=True)
class Loading:
    """One that is being read from disk."""

    key: bytes
    result: "Future[Snapshot | None]"


@dataclass
class PrefixUse:
    """How often a prefix was looked for and found, and the tokens that did not have to be read."""

    lookups: int = 0
    hits: int = 0
    tokens: int = 0

    def found(self, tokens: int) -> None:
        """Count one that was found."""
        self.hits += 1
        self.tokens += tokens


class PrefixStore:
    """Snapshots by the tokens that they have read, `capacity` bytes of them; the one that was used longest
    ago goes first. `files`: where they are kept on disk, too.

    A `salt` keeps texts apart: what one was given is not found with another, so that nobody learns from the
    time to the first token what others have sent.
    """

    def __init__(self, capacity: int, files: PrefixFiles | None = None) -> None:
        self._capacity, self._bytes, self._files = capacity, 0, files
        self._snapshots: OrderedDict[_Key, Snapshot] = OrderedDict()
        self._lengths: Counter[int] = Counter()  # of those that are kept
        self.use = PrefixUse()

    @property
    def on(self) -> bool:
        """Whether anything is kept."""
        return self._capacity > 0

    @property
    def on_disk(self) -> bool:
        """Whether it is kept on disk, too."""
        return self._files is not None and self.on

    @property
    def bytes(self) -> int:
        """What the snapshots take."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._snapshots)

    def longest(self, tokens: Sequence[int], salt: str = "", beyond: int = 0) -> Snapshot | None:
        """Return the snapshot of the longest beginning of `tokens`, all of them included; None if none is of
        more than `beyond`."""
        self.use.lookups += 1
        lengths = sorted(length for length in self._lengths if length > beyond)
        keys = dict(keys_of(tokens, lengths, salt))
        for length in sorted(keys, reverse=True):
            if (snapshot := self._snapshots.get(keys[length])) is not None:
                self._snapshots.move_to_end(keys[length])
                if self._files is not None:
                    self._files.touch(keys[length])
                self.use.found(length)
                return snapshot
        return None

    def fetch(self, tokens: Sequence[int], salt: str = "", beyond: int = 0) -> Loading | None:
        """Begin to read a longer beginning of `tokens` from disk than there is in memory, if there is one of
        more than `beyond`."""
        if self._files is None or self._capacity == 0:
            return None
        lengths = sorted(length for length in {*self._lengths, *self._files.lengths} if length > beyond)
        keys = dict(keys_of(tokens, lengths, salt))
        for length in sorted(keys, reverse=True):
            if keys[length] in self._snapshots:
                return None
            if self._files.has(keys[length]):
                return Loading(keys[length], self._files.load(keys[length]))
        return None

    def fetched(self, loading: Loading) -> None:
        """Take what was read."""
        snapshot = loading.result.result()
        if snapshot is not None:
            self._keep(loading.key, snapshot)

    def close(self) -> None:
        """Let what is not on disk yet be written."""
        if self._files is not None:
            self._files.close()

    def has(self, tokens: Sequence[int], salt: str = "") -> bool:
        """Whether there is a snapshot of just these tokens; it counts as used."""
        ((_, key),) = keys_of(tokens, [len(tokens)], salt)
        if key not in self._snapshots:
            return False
        self._snapshots.move_to_end(key)
        return True

    def add(self, tokens: Sequence[int], snapshot: Snapshot, salt: str = "") -> None:
        """Keep a snapshot of a row that has read `tokens`; older ones go where there is no room."""
        ((_, key),) = keys_of(tokens, [len(tokens)], salt)
        self._keep(key, snapshot)
        if self._files is not None and self._capacity > 0:
            self._files.keep(key, snapshot)

    def _keep(self, key: _Key, snapshot: Snapshot) -> None:
        self._drop(key)
        if snapshot.bytes > self._capacity:
            return
        self._snapshots[key] = snapshot
        self._bytes += snapshot.bytes
        self._lengths[snapshot.length] += 1
        while self._bytes > self._capacity:
            self._drop(next(iter(self._snapshots)))

    def _drop(self, key: _Key) -> None:
        snapshot = self._snapshots.pop(key, None)
        if snapshot is None:
            return
        self._bytes -= snapshot.bytes
        self._lengths[snapshot.length] -= 1
        if self._lengths[snapshot.length] == 0:
            del self._lengths[snapshot.length]


def keys_of(tokens: Sequence[int], lengths: Sequence[int], salt: str) -> Iterator[tuple[int, _Key]]:
    """Yield (length, key) for the beginnings of `tokens` with one of the ascending `lengths`, by one pass."""
    salted = hashlib.blake2b(salt.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    running, at = hashlib.blake2b(salted, digest_size=16), 0
    ids = np.asarray(tokens, np.int64)
    for length in lengths:
        if length > len(ids):
            return
        running.update(ids[at:length].tobytes())
        at = length
        yield length, running.copy().digest()
