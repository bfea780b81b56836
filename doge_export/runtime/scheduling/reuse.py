"""What a row need not read, since another has, and what it leaves for those to come."""

__all__ = ["Reuse"]

import concurrent.futures
import time
from collections.abc import Sequence

from doge_export.core.errors import DogeExportError
from doge_export.runtime.scheduling.prefixes import PrefixStore
from doge_export.runtime.scheduling.residents import Resident, Residents
from doge_export.runtime.scheduling.row import Row
from doge_export.runtime.slot_pool import SlotPool

_WORTH = 32  # new tokens from which on a prefix is kept
_PART = 16  # and what part of all of its keys they are at least
_FEW = 4  # rows of a call that ends of texts are kept of where that takes a look at all weights
_LOOK = 0.05  # seconds after which, with nothing to do but wait for the disk, others are looked for


class Reuse:
    """The rows of one pool, and the beginnings that are kept of them: in the slots where they ended, and in
    `prefixes`. `rows` are those that have a place, as they are at each moment."""

    def __init__(self, pool: SlotPool, prefixes: PrefixStore, rows: Sequence[Row]) -> None:
        self._pool, self._prefixes, self._rows = pool, prefixes, rows
        self.residents = Residents(pool, prefixes, _WORTH) if prefixes.on else None

    def make_room(self, rows: int, tokens: int) -> bool:
        """Whether the pool has room for so many rows of up to so many tokens; what is kept goes for it."""
        if self.residents is None:
            return self._pool.has_room(rows, tokens)
        return self.residents.make_room(rows, tokens)

    def copy_one(self) -> bool:
        """Copy a text that ended, for when its slot is needed; returns whether there was one."""
        return self.residents is not None and self.residents.copy_one()

    def copy_all(self) -> None:
        """Copy every text that ended, for whoever reads them later."""
        if self.residents is not None:
            self.residents.copy_all()

    def begin(self, row: Row) -> None:
        """Give a row a slot, with what is known of the beginning of its prompt."""
        pool, resident, awaited = self._pool, self._resident(row), self._awaited(row)
        if resident is not None and awaited:
            self._in_slots().copy(resident)  # others go on from it, too
        beyond = 0 if resident is None else len(resident.tokens)
        known = self._prefixes.longest(row.seen[:-1], row.salt, beyond - 1 if awaited else beyond)
        row.begun = time.perf_counter()
        if known is not None and not pool.fits(known):  # of a folder that somebody else writes to
            known = None
        if known is None and resident is not None:
            self._in_slots().take(resident)
            self._prefixes.use.found(beyond)
            row.slot, row.read, row.known_length = resident.slot, beyond, resident.kept
            row.reused = beyond
            return
        if self.residents is not None:
            self.residents.make_place()
        row.slot = pool.open() if known is None else pool.restore(known)
        row.read = row.known_length = row.reused = 0 if known is None else known.length

    def _resident(self, row: Row) -> Resident | None:
        """Return the ended text that has read the most of a row's prompt and is still in its slot."""
        return None if self.residents is None else self.residents.longest(row.seen[:-1], row.salt)

    def _awaited(self, row: Row) -> bool:
        """Whether others wait for what the row reads of their prompts, too."""
        return any(
            each is not row and each.slot is None and each.beginning == row.beginning for each in self._rows
        )

    def on_its_way(self, row: Row) -> bool:
        """Whether what is known of the beginning of a row's prompt is being read from disk."""
        if row.loading is None and self._prefixes.on_disk:
            resident = self._resident(row)
            beyond = 0 if resident is None else len(resident.tokens)
            row.loading = self._prefixes.fetch(row.seen[:-1], row.salt, beyond)
        if row.loading is None:
            return False
        if not row.loading.result.done():
            return True
        self._prefixes.fetched(row.loading)
        return False

    def wait_for_disk(self) -> None:
        """Wait for what is read from disk: nobody makes tokens meanwhile."""
        reads = [row.loading.result for row in self._rows if row.slot is None and row.loading is not None]
        if reads:
            concurrent.futures.wait(reads, _LOOK, concurrent.futures.FIRST_COMPLETED)

    def keep(self, row: Row) -> None:
        """Keep what a row has read for texts that begin likewise."""
        tokens, pool = row.seen[: row.read], self._pool
        # A copy of a long text takes longer than to read a few tokens again.
        worth = max(_WORTH, pool.sizes.used(row.read) // _PART)
        new = row.read - row.known_length
        if not row.shares or not self._prefixes.on or (new < worth and not (new and self._awaited(row))):
            return
        if not self._prefixes.has(tokens, row.salt):
            assert row.slot is not None
            self._prefixes.add(tokens, pool.snapshot(row.slot), row.salt)
        row.known_length = row.read

    def save(self, rows: Sequence[Row], steps: int) -> None:
        """Save what a call overwrites of bounded caches that are full, so that their ends can be kept."""
        for row in rows:
            assert row.slot is not None
            wanted = steps > 1 and self._prefixes.on and len(rows) <= _FEW and row.shares
            row.checkpoint = self._pool.checkpoint(row.slot, steps) if wanted else None

    def keep_ended(self, row: Row) -> None:
        """Keep a whole text, which the next turn of a conversation begins with: all but its last token, which
        was never read, or all up to its last call."""
        beyond, pool = row.read - (len(row.seen) - 1), self._pool  # tokens that were made after the end
        assert row.slot is not None
        if beyond > 0:
            try:
                pool.rewind(row.slot, beyond)
                row.read -= beyond
            except DogeExportError:  # a full bounded cache
                if row.checkpoint is None:  # the end of the prompt has to do
                    return
                pool.go_back(row.slot, row.checkpoint)
                row.read = row.checkpoint.length
        self.stay(row)

    def stay(self, row: Row) -> None:
        """Leave what a row has read in its slot, until that is needed."""
        if self.residents is None or row.slot is None or row.read == 0 or not row.shares:
            return
        self.residents.leave(Resident(row.slot, row.seen[: row.read], row.salt, row.known_length))
        row.slot = None

    def _in_slots(self) -> Residents:
        assert self.residents is not None
        return self.residents
