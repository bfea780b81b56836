"""The next token of each row: from all logits, or from the best tokens where those are enough."""

__all__ = ["AllLogits", "BestTokens", "GreedyTokens", "NextTokens", "next_tokens"]

import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from doge_export.memory import release_memory
from doge_export.runtime.decoder import TokenDecoder
from doge_export.runtime.options import GenerationOptions
from doge_export.runtime.sampling import Sampler, check_logits
from doge_export.runtime.session import Session

Ids = npt.NDArray[np.int64]
Read = Callable[[int], None]

_MOST_STEPS = 16  # tokens of one call
_PIECE = 512  # tokens of a prompt that a bounded cache is given at once
_PATIENCE = 0.02  # seconds that one call may take, but for the second of two tokens


class NextTokens(Protocol):
    """One batch of rows, from the first token on."""

    @property
    def capacity(self) -> int | None:
        """The most positions the cache can hold; None where it grows."""

    def choose(
        self, input_ids: Ids, real: Ids, position_ids: Ids, rows: Mapping[int, Sequence[int]], left: int
    ) -> dict[int, int]:
        """Feed [batch, sequence] tokens (`real`: 0 marks padding) and choose what follows in each of `rows`
        (row -> the ids before it). At most `left` tokens a row are wanted yet, this one included."""


class AllLogits:
    """From the logits of the whole vocabulary."""

    def __init__(self, session: Session, sampler: Sampler, batch: int, read: Read) -> None:
        self._session, self._sampler, self._read = session, sampler, read
        self._cache = session.new_cache(batch)
        self._mask = np.empty((batch, 0), np.int64)
        self.capacity = self._cache.capacity

    def feed(self, input_ids: Ids, real: Ids, position_ids: Ids) -> npt.NDArray[np.float32]:
        """Logits [batch, 1, vocab] of the last position."""
        if not self._cache.streams:
            self._mask = np.concatenate([self._mask, real], axis=1)
            logits, self._cache = self._session.step(
                input_ids, self._mask, position_ids, self._cache, last=True
            )
            return logits
        length = int(position_ids.max()) + 1
        for part in _pieces(input_ids.shape[1], self._read):
            logits, self._cache = self._session.step(
                input_ids[:, part], real[:, part], position_ids[:, part], self._cache, length, last=True
            )
        return logits

    def choose(
        self, input_ids: Ids, real: Ids, position_ids: Ids, rows: Mapping[int, Sequence[int]], left: int
    ) -> dict[int, int]:
        """See NextTokens."""
        logits = self.feed(input_ids, real, position_ids)
        return {row: self._sampler.choose(row, logits[row, -1], seen, left) for row, seen in rows.items()}


class _Calls:
    """The calls so far, to be made again. Of those with the next token of each row, the tokens alone are
    kept, in 4 bytes each: a text of any length may come."""

    def __init__(self) -> None:
        self._parts: list[tuple[tuple[Ids, Ids, Ids], array[int]]] = []
        self._next: Ids | None = None  # positions [batch, 1]

    def add(self, input_ids: Ids, real: Ids, position_ids: Ids) -> None:
        if self._next is not None and np.array_equal(position_ids, self._next) and real.all():
            self._parts[-1][1].extend(input_ids[:, 0].tolist())
        else:
            self._parts.append(((input_ids, real, position_ids), array("i")))
        self._next = position_ids[:, -1:] + 1

    def __iter__(self) -> Iterator[tuple[Ids, Ids, Ids]]:
        for (input_ids, real, position_ids), tokens in self._parts:
            yield input_ids, real, position_ids
            rows = len(input_ids)
            later = np.array(tokens, np.int64).reshape(-1, rows, 1)
            for count, ids in enumerate(later, 1):
                yield ids, np.ones_like(ids), position_ids[:, -1:] + count

    def clear(self) -> None:
        self._parts.clear()
        self._next = None


class BestTokens:
    """From the best tokens alone, with a cache written in place.

    Where they leave the choice open (equals of the k-th best may go on behind the last one), the text so far
    is taken through the other graph by the same calls, and that one goes on.
    """

    def __init__(self, session: Session, sampler: Sampler, batch: int, read: Read) -> None:
        self._session, self._sampler, self._batch, self._read = session, sampler, batch, read
        self._decoder = session.decoder(batch)
        self._calls = _Calls()
        self._other: AllLogits | None = None
        self.capacity = self._decoder.capacity

    def choose(
        self, input_ids: Ids, real: Ids, position_ids: Ids, rows: Mapping[int, Sequence[int]], left: int
    ) -> dict[int, int]:
        """See NextTokens."""
        if self._other is not None:
            return self._other.choose(input_ids, real, position_ids, rows, left)
        self._calls.add(input_ids, real, position_ids)
        token_ids, token_logits = _stream(self._decoder, input_ids, real, position_ids, 1, self._read)
        tokens: dict[int, int] = {}
        for row in rows:
            token = self._sampler.choose_among(row, token_ids[row, 0], token_logits[row, 0])
            if token is not None:
                tokens[row] = token
        if len(tokens) < len(rows):
            self._other = AllLogits(self._session, self._sampler, self._batch, _nobody)
            for call in self._calls:
                logits = self._other.feed(*call)
            self._calls.clear()
            for row, seen in rows.items():
                if row not in tokens:
                    tokens[row] = self._sampler.choose(row, logits[row, -1], seen, left)
        return tokens


class GreedyTokens:
    """The best token each time, for one row: the kernels go on alone for several tokens. After each call of
    the runtime, it and Python are read into the processor's caches again, and they are not small."""

    def __init__(self, session: Session, read: Read, row: int = 0) -> None:
        self._decoder, self._read, self._row = session.decoder(1), read, row
        self._made: list[int] = []  # the tokens after those that were given out, the last one first
        self._logits = np.empty(0, np.float32)  # of the tokens that were made at once
        self._seconds = float("inf")  # of the last token
        self.capacity = self._decoder.capacity

    def choose(
        self, input_ids: Ids, real: Ids, position_ids: Ids, rows: Mapping[int, Sequence[int]], left: int
    ) -> dict[int, int]:
        """See NextTokens."""
        if not self._made:
            # No more than would keep a reader waiting; what a stop makes useless was soon made. Two at
            # least, once the time of one is known: of several the kernels look for the best alone, which is
            # faster.
            least = 1 if self._seconds == float("inf") else 2
            steps = min(left, _MOST_STEPS, max(least, int(_PATIENCE / self._seconds)))
            steps = 1 << (steps.bit_length() - 1)  # few sizes: what is bound for one serves again
            started = time.perf_counter()
            token_ids, logits = _stream(self._decoder, input_ids, real, position_ids, steps, self._read)
            if input_ids.shape[1] == 1:
                self._seconds = (time.perf_counter() - started) / steps
            self._made = token_ids[0, ::-1, 0].tolist()
            self._logits = logits[0, ::-1, :1].copy()
        check_logits(self._row, self._logits[len(self._made) - 1], best_alone=True)
        return {0: self._made.pop()}


def _pieces(length: int, read: Read) -> Iterator[slice]:
    """A prompt in parts, the last one never empty; `read` is told of each but that. What several took no
    step takes again: it goes back."""
    for at in range(0, length, _PIECE):
        part = slice(at, min(at + _PIECE, length))
        yield part
        if part.stop < length:
            read(part.stop - part.start)
    if length > _PIECE:
        release_memory()


def _stream(
    decoder: TokenDecoder, input_ids: Ids, real: Ids, position_ids: Ids, steps: int, read: Read
) -> tuple[Ids, npt.NDArray[np.float32]]:
    """`decoder.step`; a prompt goes into a bounded cache piece by piece, each with the whole one's angles."""
    if not decoder.streams:
        return decoder.step(input_ids, position_ids, real, steps)
    length, end = int(position_ids.max()) + 1, input_ids.shape[1]
    for part in _pieces(end, read):
        wanted = steps if part.stop == end else 1
        found = decoder.step(input_ids[:, part], position_ids[:, part], real[:, part], wanted, length)
    return found


def _nobody(tokens: int) -> None:
    """For whom nothing is too long."""


def next_tokens(
    session: Session, options: GenerationOptions, batch: int, read: Read | None = None, first: int = 0
) -> NextTokens:
    """The cheaper way that gives the same tokens. Loads the graph that it needs. `read` is told how many
    tokens a row were read, after each piece of a prompt but the last. The batch are the rows from `first` on
    of those that were asked for, and draw as such."""
    read = read or _nobody
    sampler = Sampler(options, batch, first)
    if options.candidates == 1 and batch == 1 and session.candidates:
        return GreedyTokens(session, read, first)
    if options.candidates is not None and options.candidates <= session.candidates:
        return BestTokens(session, sampler, batch, read)
    return AllLogits(session, sampler, batch, read)
