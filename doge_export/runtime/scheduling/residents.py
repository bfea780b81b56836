"""Texts that ended and are still in their slots: what goes on with one does so there, without a copy."""

__all__ = ["Resident", "Residents"]

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from doge_export.runtime.scheduling.prefixes import PrefixStore, keys_of
from doge_export.runtime.slot_pool import SlotPool


@dataclass
class Resident:
    """A row that has read `tokens`, of which the first `kept` are in the store."""

    slot: int
    tokens: list[int]
    salt: str
    kept: int


class Residents:
    """Ended rows by their tokens. They stay until their slots are needed, the one that ended longest ago goes
    first, and `worth` new tokens of it are worth a copy in the store."""

    def __init__(self, pool: SlotPool, prefixes: PrefixStore, worth: int) -> None:
        self._pool, self._prefixes, self._worth = pool, prefixes, worth
        self._rows: OrderedDict[bytes, Resident] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def longest_length(self) -> int:
        """The tokens of the longest one."""
        return max((len(row.tokens) for row in self._rows.values()), default=0)

    def leave(self, row: Resident) -> None:
        """Leave a row in its slot. Of two that have read the same one goes."""
        ((_, key),) = keys_of(row.tokens, [len(row.tokens)], row.salt)
        if (same := self._rows.pop(key, None)) is not None:
            row.kept = max(row.kept, same.kept)
            self._pool.close(same.slot)
        self._rows[key] = row

    def longest(self, tokens: Sequence[int], salt: str) -> Resident | None:
        """Return the one that has read the longest beginning of `tokens`, all of them included."""
        keys = dict(keys_of(tokens, sorted({len(row.tokens) for row in self._rows.values()}), salt))
        for length in sorted(keys, reverse=True):
            if (row := self._rows.get(keys[length])) is not None:
                return row
        return None

    def take(self, row: Resident) -> None:
        """Take its slot over."""
        self._rows = OrderedDict((key, each) for key, each in self._rows.items() if each is not row)

    def give_up(self) -> None:
        """Free the slot of the one that ended longest ago; what is worth it is copied."""
        row = next(iter(self._rows.values()))
        self.copy(row)
        self.take(row)
        self._pool.close(row.slot)

    def make_place(self) -> None:
        """See that a newcomer finds a slot where the pool needs not grow for it."""
        if self._rows and len(self._pool.rows) == self._pool.slots:
            self.give_up()

    def make_room(self, rows: int, tokens: int) -> bool:
        """Whether the pool has room for so many rows of up to so many tokens beside these, once those of them
        went that are in the way: a newcomer may take a free slot after theirs."""
        while not self._pool.has_room(rows + len(self), max(tokens, self.longest_length)):
            if not self._rows:
                return False
            self.give_up()
        return True

    def copy(self, row: Resident) -> bool:
        """Copy one to the store, if that is worth it; returns whether it was."""
        if len(row.tokens) - row.kept < self._worth:
            return False
        row.kept = len(row.tokens)
        if self._prefixes.has(row.tokens, row.salt):
            return False
        self._prefixes.add(row.tokens, self._pool.snapshot(row.slot), row.salt)
        return True

    def copy_all(self) -> None:
        """Copy all that are worth it, the newest last."""
        for row in self._rows.values():
            self.copy(row)

    def copy_one(self) -> bool:
        """Copy the newest that is worth it; returns whether there was one. For when there is time."""
        return any(self.copy(row) for row in reversed(self._rows.values()))
