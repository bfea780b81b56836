"""Rows that come and go: a pool of caches on the graph that gives the best tokens, each in a numbered slot.

A row has the same tokens, logits and cache, to the bit, whatever stands beside it and however its prompt was
cut.
"""

__all__ = ["Ids", "Logits", "SlotPool", "Snapshot"]

import itertools
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from doge_export.core.bundle import CacheSpec, DecodeSpec
from doge_export.core.errors import DogeExportError
from doge_export.runtime import tensors
from doge_export.runtime.cache import check_room
from doge_export.runtime.cache_arrays import bind_cache, empty_cache
from doge_export.runtime.draws import Draws
from doge_export.runtime.pool_sizes import PoolSizes
from doge_export.runtime.slot_checkpoint import Checkpoint, LowKeys

Ids = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]

_STEADY = 16  # tokens a row of a call that is kept to be made again


@dataclass(frozen=True)
class Snapshot:
    """A row outside the pool: how many tokens it has read, and what each part of the cache holds of it
    [layers, kv_heads, keys, ...]."""

    length: int
    parts: tuple[npt.NDArray[Any], ...]

    @property
    def bytes(self) -> int:
        """What it takes."""
        return sum(part.nbytes for part in self.parts)


class SlotPool:
    """Rows of a loaded `decode.onnx`, each with as many new tokens a call as it has.

    A row that takes or leaves a slot touches no other. The pool doubles when it is full, and so does its
    number of keys: a copy now and then, within `limit` bytes. Not for two threads at once.
    """

    def __init__(
        self, graph: Any, spec: DecodeSpec, vocab_size: int, slots: int = 4, limit: int | None = None
    ) -> None:
        self._graph, self._spec, self._vocab = graph, spec, vocab_size
        self._specs = {tensor.name: tensor for tensor in spec.inputs}
        self._lengths: dict[int, int] = {}
        self.sizes = PoolSizes(spec, limit)
        keys = self.sizes.keys(0)
        self._slots, self._keys = self.sizes.layout((1, keys), (slots, keys))
        self._parts = empty_cache(spec, self._slots, self._keys)
        self._bound: dict[tuple[int, int, int, int, bool], _Bound] = {}
        self._low_keys = LowKeys()
        self._optional = {tensor.name: tensor.dtype for tensor in spec.optional_inputs}
        covered = self._specs["attention_mask"].shape[1]
        self._mask = np.empty(
            (0, covered if isinstance(covered, int) else 0), np.int64
        )  # there is no padding
        self.seconds = 0.0  # of the last call, without what is prepared once for calls like it

    @property
    def streams(self) -> bool:
        """Whether a text of any length may come: the cache is bounded."""
        return self._cache.kind == "bounded"

    @property
    def rows(self) -> Mapping[int, int]:
        """Slot -> tokens that its row has read."""
        return dict(self._lengths)

    @property
    def slots(self) -> int:
        """How many slots the pool has now."""
        return self._slots

    @property
    def bytes(self) -> int:
        """What the pool takes, empty slots included."""
        return sum(part.nbytes for part in self._parts.values())

    @property
    def bytes_in_use(self) -> int:
        """What the keys of its rows take."""
        return sum(self.sizes.used(length) for length in self._lengths.values()) * self.sizes.key_bytes

    def has_room(self, rows: int, tokens: int) -> bool:
        """Whether there can be so many rows, those that there are counted in, of up to so many tokens."""
        return self.sizes.hold(max(rows, 0, *(slot + 1 for slot in self._lengths)), tokens)

    def open(self) -> int:
        """Begin an empty row; returns its slot, the lowest one that is free."""
        free = [slot for slot in range(self._slots) if slot not in self._lengths]
        if not free:
            free = [self._slots]
            self._resize(self._slots + 1, 0)
        slot = free[0]
        if (positions := self._positions) is not None:
            positions[:, slot] = -1
        self._lengths[slot] = 0
        return slot

    def close(self, slot: int) -> None:
        """End a row. Its slot is free, and what was in it is nobody's.

        Raises:
            DogeExportError: there is no row in the slot.
        """
        self._length(slot)
        del self._lengths[slot]

    def fork(self, slot: int) -> int:
        """Begin a row that has read what the one in `slot` has; returns its slot. Raises as `close`."""
        length = self._length(slot)
        other, used = self.open(), self.sizes.used(length)
        for part in self._parts.values():
            part[:, other, :, :used] = part[:, slot, :, :used]
        self._lengths[other] = length
        return other

    def snapshot(self, slot: int) -> Snapshot:
        """Copy a row out of the pool. Raises as `close`."""
        length = self._length(slot)
        used = self.sizes.used(length)
        return Snapshot(length, tuple(part[:, slot, :, :used].copy() for part in self._parts.values()))

    def evict(self, slot: int) -> Snapshot:
        """Take a row out of the pool, to be restored later. Raises as `close`."""
        taken = self.snapshot(slot)
        self.close(slot)
        return taken

    def fits(self, snapshot: Snapshot) -> bool:
        """Whether the snapshot is of a row of this model, as far as its shapes say."""
        used = self.sizes.used(snapshot.length)
        shapes = [
            (part.dtype, part.shape[0], part.shape[2], used, *part.shape[4:]) for part in self._parts.values()
        ]
        return shapes == [(part.dtype, *part.shape) for part in snapshot.parts]

    def restore(self, snapshot: Snapshot, slot: int | None = None) -> int:
        """Put a row back, into a free slot or in the place of the row in `slot`; returns the slot.

        Raises:
            DogeExportError: there is no row in `slot`, or the snapshot is of another model.
        """
        if not self.fits(snapshot):
            raise DogeExportError("The snapshot is of a row of another model.")
        used = self.sizes.used(snapshot.length)
        if slot is None:
            slot = self.open()
        else:
            self._length(slot)
        if used > self._keys:
            self._resize(0, snapshot.length)
        if (positions := self._positions) is not None:
            positions[:, slot] = -1
        for part, saved in zip(self._parts.values(), snapshot.parts, strict=True):
            part[:, slot, :, :used] = saved
        self._lengths[slot] = snapshot.length
        return slot

    def rewind(self, slot: int, tokens: int) -> None:
        """Forget the last `tokens` of a row, a draft's that were not taken.

        Raises:
            DogeExportError: there is no row in the slot, it has not read so many, or it is of a bounded cache
                that is full, which has forgotten what was there before them.
        """
        length = self._length(slot)
        if not 0 <= tokens <= length:
            raise DogeExportError(f"The row in slot {slot} has read {length} tokens, not {tokens} to forget.")
        if (most := self.sizes.most_keys) is not None and length > most and tokens > 0:
            raise DogeExportError(
                f"The row in slot {slot} has read {length} tokens, and its bounded cache of {most} keys has "
                "dropped some: it cannot be rewound.",
                "Take a snapshot before a draft, and restore it.",
            )
        if (positions := self._positions) is not None:
            positions[:, slot, :, length - tokens : length] = -1
        self._lengths[slot] = length - tokens

    def checkpoint(self, slot: int, tokens: int) -> Checkpoint | None:
        """Save what is needed to take the row in `slot` back after so many steps, where `rewind` cannot; None
        where it can, or where that is too much. Raises as `close`."""
        length, most = self._length(slot), self.sizes.most_keys
        if most is None or length + tokens <= most:
            return None
        dtypes = {name: self._specs[name].dtype for name, part in self._parts.items() if part.ndim == 4}
        dt = next((name, dtype) for name, dtype in dtypes.items() if dtype != "int64")
        return self._low_keys.checkpoint(self._parts, dt, slot, length, tokens)

    def go_back(self, slot: int, checkpoint: Checkpoint) -> None:
        """Let the row in `slot` be what it was at the checkpoint; it has read single tokens since then, no
        more than it is for. Raises as `close`."""
        self._length(slot)
        checkpoint.put_back(self._parts, slot)
        if (positions := self._positions) is not None:
            positions[:, slot, :, checkpoint.length :] = -1
        self._lengths[slot] = checkpoint.length

    def step(
        self,
        rows: Mapping[int, Sequence[int]],
        steps: int = 1,
        every: Collection[int] = (),
        rope_lengths: Mapping[int, int] | None = None,
        draws: Draws | None = None,
        quiet: Collection[int] = (),
    ) -> dict[int, tuple[Ids, Logits]]:
        """Let the row in each slot read its tokens, all in one call. Then all go on alone, each with its best
        token after the last, until there are `steps` new ones.

        `every`: the slots for which the best tokens after every token are wanted, as a draft's verification
        needs; of one step. `rope_lengths`: slot -> the length of its text, where it is read in pieces and the
        rope depends on it. With `draws`, a row of it for each token that is given out, in their order, they
        are drawn, which the spec must know. `quiet`: the slots for which nothing is wanted, as between the
        pieces of a prompt; of one step, and nothing is returned for them.

        Returns: slot -> token ids [steps, best] or, for those of `every`, [tokens, best], best first and the
        lower id first among equals, and their logits; of one step there are the spec's `count`, of several,
        or drawn, one each. All but the last of the new tokens are in the cache. Where it raises, nothing has
        changed.

        Raises:
            DogeExportError: a slot has no row, a row has no token or one outside the vocabulary, there is no
                room, or several steps are asked for beside `every` or `quiet`.
        """
        if not rows:
            return {}
        if steps < 1 or (steps > 1 and (every or quiet)):
            raise DogeExportError(
                f"{steps} steps cannot be made"
                + (" with some tokens wanted and others not." if every or quiet else ".")
            )
        for slot in every:
            if slot not in rows:
                raise DogeExportError(f"Every token of slot {slot} is wanted, and the call has none.")
        counts, lengths = [len(tokens) for tokens in rows.values()], [self._length(slot) for slot in rows]
        for slot, tokens in rows.items():
            self._check(slot, tokens)
        most = max(length + count for length, count in zip(lengths, counts, strict=True)) + steps - 1
        if self.sizes.used(most) > self._keys:
            self._resize(0, most)
        offsets = [0, *itertools.accumulate(counts)]
        wanted: list[int] = []
        places: dict[int, slice] = {}
        some = bool(every or quiet)
        for slot, first, end in zip(rows, offsets, offsets[1:], strict=False) if some else ():
            if slot in quiet:
                continue
            first = first if slot in every else end - 1
            places[slot] = slice(len(wanted), len(wanted) + end - first)
            wanted.extend(range(first, end))
        if some and not wanted:  # the graph takes none for all
            wanted, draws = [offsets[1] - 1], None
        bound = self._bind(len(rows), offsets[-1], steps, len(wanted), draws is not None)
        if draws is not None:
            draws.bind(bound.binding, self._optional, bound.drawn)
        # Lists: for the few numbers of a step numpy's functions take longer than the copy.
        bound.ids[0] = [token for tokens in rows.values() for token in tokens]
        bound.positions[0] = [
            place
            for length, count in zip(lengths, counts, strict=True)
            for place in range(length, length + count)
        ]
        bound.places[:], bound.offsets[:], bound.slots[:] = lengths, offsets, list(rows)
        if rope_lengths:
            bound.rope[:] = [rope_lengths.get(slot, 0) for slot in rows]
        else:
            bound.rope.fill(0)
        if some:
            bound.wanted[:] = wanted
        started = time.perf_counter()
        with tensors.memory_errors():
            self._graph.run_with_iobinding(bound.binding)
        self.seconds = time.perf_counter() - started
        for slot, count in zip(rows, counts, strict=True):
            self._lengths[slot] += count + steps - 1
        if some:
            return {
                slot: (bound.tokens[place, 0].copy(), bound.logits[place, 0].copy())
                for slot, place in places.items()
            }
        return {slot: (bound.tokens[row].copy(), bound.logits[row].copy()) for row, slot in enumerate(rows)}

    @property
    def _cache(self) -> CacheSpec:
        return self._spec.cache

    @property
    def _positions(self) -> npt.NDArray[Any] | None:
        return next((part for name, part in self._parts.items() if self._specs[name].dtype == "int64"), None)

    def _length(self, slot: int) -> int:
        if slot not in self._lengths:
            raise DogeExportError(f"There is no row in slot {slot}.", "Begin one with open, fork or restore.")
        return self._lengths[slot]

    def _check(self, slot: int, tokens: Sequence[int]) -> None:
        if len(tokens) == 0:
            raise DogeExportError(f"The row in slot {slot} has no token to read.")
        for token in tokens:
            if not 0 <= token < self._vocab:
                raise DogeExportError(
                    f"Slot {slot} is given the token {token}, and the model's vocabulary has {self._vocab} "
                    "entries."
                )

    def _resize(self, slots: int, tokens: int) -> None:
        """Make room for so many slots, or those in use, and for a row of so many tokens. What grows doubles,
        as far as the limit lets it, and what does not gives way where it has to."""
        if self._cache.max_length is not None:
            check_room(tokens, self._cache.max_length)
        slots = max(slots, *(slot + 1 for slot in self._lengths), 1)
        tokens = max(tokens, *self._lengths.values(), 0)
        keys, doubled = self.sizes.keys(tokens), min(2 * self._keys, self.sizes.most_keys or 2 * self._keys)
        wanted = (
            max(slots, 2 * self._slots) if slots > self._slots else self._slots,
            max(keys, doubled) if keys > self._keys else self._keys,
        )
        before, old = self._parts, (self._slots, self._keys)
        self._slots, self._keys = self.sizes.layout((slots, keys), wanted)
        self._parts = empty_cache(self._spec, self._slots, self._keys)
        held, kept = min(old[0], self._slots), min(old[1], self._keys)
        for name, part in before.items():
            self._parts[name][:, :held, :, :kept] = part[:, :held, :, :kept]
        self._bound.clear()

    def _bind(self, rows: int, tokens: int, steps: int, wanted: int, drawn: bool) -> "_Bound":
        steady = rows == 1 or (tokens == rows and not wanted)  # a call that comes again
        key = (rows, tokens, steps, wanted, drawn)
        if steady and key in self._bound:
            return self._bound[key]
        binding = self._graph.io_binding()
        count = self._spec.count if steps == 1 and not drawn else 1
        bound = _Bound(binding, rows, tokens, steps, wanted, count)
        for name, array in (
            ("input_ids", bound.ids),
            ("position_ids", bound.positions),
            ("cache_position", bound.places),
            ("attention_mask", self._mask),
            ("rope_length", bound.whole),
            ("steps", bound.steps),
        ):
            if name in self._specs:
                tensors.bind(binding.bind_input, name, "int64", array)
        for name, array in (
            ("offsets", bound.offsets),
            ("slots", bound.slots),
            ("wanted", bound.wanted),
            ("rope_lengths", bound.rope),
        ):
            tensors.bind(binding.bind_input, name, "int64", array)
        bind_cache(binding, self._spec, self._parts)
        tensors.bind(binding.bind_output, "token_ids", "int64", bound.tokens)
        tensors.bind(binding.bind_output, "token_logits", "float32", bound.logits)
        if steady and tokens <= _STEADY * rows:
            self._bound[key] = bound
        return bound


class _Bound:
    """An IOBinding, and the memory behind what is in it beside the cache."""

    def __init__(self, binding: Any, rows: int, tokens: int, steps: int, wanted: int, count: int) -> None:
        self.binding = binding
        self.ids, self.positions = (np.empty((1, tokens), np.int64) for _ in range(2))
        self.places, self.slots, self.rope = (np.empty(rows, np.int64) for _ in range(3))
        self.offsets, self.wanted = np.empty(rows + 1, np.int64), np.empty(wanted, np.int64)
        self.whole, self.steps = np.array(0, np.int64), np.array(steps, np.int64)
        self.tokens: Ids = np.empty((wanted or rows, steps, count), np.int64)
        self.logits: Logits = np.empty((wanted or rows, steps, count), np.float32)
        self.drawn: dict[str, npt.NDArray[Any]] = {}
