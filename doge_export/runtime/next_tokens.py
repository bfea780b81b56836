"""The next token of each row: from all logits, or from the best tokens where those are enough."""

__all__ = ["AllLogits", "BestTokens", "NextTokens", "next_tokens"]

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from doge_export.runtime.options import GenerationOptions
from doge_export.runtime.sampling import Sampler
from doge_export.runtime.session import Session

Ids = npt.NDArray[np.int64]


class NextTokens(Protocol):
    """One batch of rows, from the first token on."""

    @property
    def capacity(self) -> int | None:
        """The most positions the cache can hold; None where it grows."""

    def choose(
        self, input_ids: Ids, real: Ids, position_ids: Ids, rows: Mapping[int, Sequence[int]]
    ) -> dict[int, int]:
        """Feed [batch, sequence] tokens (`real`: 0 marks padding) and choose what follows in each of `rows`
        (row -> the ids before it)."""


class AllLogits:
    """From the logits of the whole vocabulary."""

    def __init__(self, session: Session, sampler: Sampler, batch: int) -> None:
        self._session, self._sampler = session, sampler
        self._cache = session.new_cache(batch)
        self._mask = np.empty((batch, 0), np.int64)
        self.capacity = self._cache.capacity

    def feed(self, input_ids: Ids, real: Ids, position_ids: Ids) -> npt.NDArray[np.float32]:
        """Logits [batch, sequence, vocab]."""
        self._mask = np.concatenate([self._mask, real], axis=1)
        logits, self._cache = self._session.step(input_ids, self._mask, position_ids, self._cache)
        return logits

    def choose(
        self, input_ids: Ids, real: Ids, position_ids: Ids, rows: Mapping[int, Sequence[int]]
    ) -> dict[int, int]:
        """See NextTokens."""
        logits = self.feed(input_ids, real, position_ids)
        return {row: self._sampler.choose(row, logits[row, -1], seen) for row, seen in rows.items()}


class BestTokens:
    """From the best tokens alone, with a cache written in place.

    Where they leave the choice open (equals of the k-th best may go on behind the last one), the text so far
    is taken through the other graph by the same calls, and that one goes on.
    """

    def __init__(self, session: Session, sampler: Sampler, batch: int) -> None:
        self._session, self._sampler, self._batch = session, sampler, batch
        self._decoder = session.decoder(batch)
        self._calls: list[tuple[Ids, Ids, Ids]] = []
        self._other: AllLogits | None = None
        self.capacity = self._decoder.capacity

    def choose(
        self, input_ids: Ids, real: Ids, position_ids: Ids, rows: Mapping[int, Sequence[int]]
    ) -> dict[int, int]:
        """See NextTokens."""
        if self._other is not None:
            return self._other.choose(input_ids, real, position_ids, rows)
        self._calls.append((input_ids, real, position_ids))
        token_ids, token_logits = self._decoder.step(input_ids, position_ids, real)
        tokens: dict[int, int] = {}
        for row in rows:
            token = self._sampler.choose_among(row, token_ids[row], token_logits[row])
            if token is not None:
                tokens[row] = token
        if len(tokens) < len(rows):
            self._other = AllLogits(self._session, self._sampler, self._batch)
            for call in self._calls:
                logits = self._other.feed(*call)
            for row, seen in rows.items():
                if row not in tokens:
                    tokens[row] = self._sampler.choose(row, logits[row, -1], seen)
        return tokens


def next_tokens(session: Session, options: GenerationOptions, batch: int) -> NextTokens:
    """The cheaper way that gives the same tokens. Loads the graph that it needs."""
    sampler = Sampler(options, batch)
    if options.candidates is not None and options.candidates <= session.candidates:
        return BestTokens(session, sampler, batch)
    return AllLogits(session, sampler, batch)
