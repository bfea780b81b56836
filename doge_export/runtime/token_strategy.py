"""The next token of each row: made by the kernels, several a call, or from the best tokens, or all logits."""

__all__ = ["AllLogits", "BestTokens", "SeveralTokens", "TokenStrategy", "choose_strategy"]

import time
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from doge_export.runtime.calls import StepsPerCall, pieces
from doge_export.runtime.constraints import Constraint
from doge_export.runtime.decoder import TokenDecoder
from doge_export.runtime.draws import Draws, draws_of
from doge_export.runtime.lookup_tokens import LookupTokens
from doge_export.runtime.options import GenerationOptions
from doge_export.runtime.processors import best_tokens_needed
from doge_export.runtime.sampling import Sampler, check_logits, none_left
from doge_export.runtime.session import Session

Ids = npt.NDArray[np.int64]
Read = Callable[[int], None]
Rules = Sequence[Constraint | None]  # a row each; empty: none has some


class TokenStrategy(Protocol):
    """A way to choose the next token of each row of a batch, from the first token on."""

    @property
    def capacity(self) -> int | None:
        """The most positions the cache can hold; None where it grows."""

    def choose(
        self, input_ids: Ids, real: Ids, position_ids: Ids, rows: Mapping[int, Sequence[int]], left: int
    ) -> dict[int, int]:
        """Feed [batch, sequence] tokens (`real`: 0 marks padding) and choose what follows in each of `rows`
        (row -> the ids before it). At most `left` tokens a row are wanted yet, this one included."""


class AllLogits:
    """Chooses from the logits of the whole vocabulary."""

    def __init__(self, session: Session, sampler: Sampler, batch: int, read: Read, rules: Rules = ()) -> None:
        self._session, self._sampler, self._read, self._rules = session, sampler, read, rules
        self._cache = session.new_cache(batch)
        self._mask = np.empty((batch, 0), np.int64)
        self.capacity = self._cache.capacity

    def last_logits(self, input_ids: Ids, real: Ids, position_ids: Ids) -> npt.NDArray[np.float32]:
        """Read the tokens; returns the logits [batch, 1, vocab] of the last position."""
        *_, logits = self.calls(input_ids, real, position_ids, last=True)
        return logits

    def calls(
        self, input_ids: Ids, real: Ids, position_ids: Ids, last: bool = False
    ) -> Iterator[npt.NDArray[np.float32]]:
        """Run the tokens, in pieces where the cache is for that; yields the logits [batch, sequence, vocab]
        of each call, those of its last position alone where nothing else is wanted."""
        if not self._cache.streams:
            self._mask = np.concatenate([self._mask, real], axis=1)
            logits, self._cache = self._session.step(
                input_ids, self._mask, position_ids, self._cache, last=last
            )
            yield logits
            return
        length = int(position_ids.max()) + 1
        for part in pieces(input_ids.shape[1], self._read):
            logits, self._cache = self._session.step(
                input_ids[:, part], real[:, part], position_ids[:, part], self._cache, length, last=last
            )
            yield logits

    def choose(
        self, input_ids: Ids, real: Ids, position_ids: Ids, rows: Mapping[int, Sequence[int]], left: int
    ) -> dict[int, int]:
        """See TokenStrategy."""
        return self.chosen(self.last_logits(input_ids, real, position_ids), rows, left)

    def chosen(
        self, logits: npt.NDArray[np.float32], rows: Mapping[int, Sequence[int]], left: int
    ) -> dict[int, int]:
        """The tokens that `choose` takes from the last of the logits of a call."""
        allowed = _allowed(self._rules, rows)
        return {
            row: self._sampler.choose(row, logits[row, -1], seen, left, allowed.get(row))
            for row, seen in rows.items()
        }


class _Calls:
    """Records the calls so far, to make them again. Of those with the next token of each row, the tokens
    alone are kept, in 4 bytes each: a text of any length may come."""

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
    """Chooses among the best tokens alone, with a cache written in place.

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
        """See TokenStrategy."""
        if self._other is not None:
            return self._other.choose(input_ids, real, position_ids, rows, left)
        self._calls.add(input_ids, real, position_ids)
        token_ids, token_logits = _stream(self._decoder, input_ids, real, position_ids, 1, self._read)
        tokens: dict[int, int] = {}
        for row, seen in rows.items():
            token = self._sampler.choose_among(row, token_ids[row, 0], token_logits[row, 0], len(seen))
            if token is not None:
                tokens[row] = token
        if len(tokens) < len(rows):
            self._other = AllLogits(self._session, self._sampler, self._batch, _nobody)
            for call in self._calls:
                logits = self._other.last_logits(*call)
            self._calls.clear()
            for row, seen in rows.items():
                if row not in tokens:
                    tokens[row] = self._sampler.choose(row, logits[row, -1], seen, left)
        return tokens


class SeveralTokens:
    """Takes the best token each time, or the one that `draws` give: the kernels go on alone for several.
    After each call of the runtime, it and Python are read into the processor's caches again, and they are not
    small. `first`: the number of the first row. While a row has rules, which Python asks, a call makes one
    token; they need `draws`."""

    def __init__(
        self,
        session: Session,
        batch: int,
        read: Read,
        first: int = 0,
        draws: Draws | None = None,
        rules: Rules = (),
    ) -> None:
        self._decoder, self._read, self._first = session.decoder(batch), read, first
        self._batch, self._draws, self._rules = batch, draws, rules
        self._made: list[list[int]] = [[]] * batch  # after those given out, a row each, the last one first
        self._logits: npt.NDArray[np.float32] | None = None  # of those made at once, where one is no number
        self._steps = StepsPerCall()
        self.capacity = self._decoder.capacity

    def choose(
        self, input_ids: Ids, real: Ids, position_ids: Ids, rows: Mapping[int, Sequence[int]], left: int
    ) -> dict[int, int]:
        """See TokenStrategy."""
        if not self._made[0]:
            allowed = _allowed(self._rules, rows)
            steps = 1 if allowed else self._steps.best(left)
            if self._draws is not None:
                if self._rules and (empty := self._draws.allow(allowed)):
                    raise none_left(self._first + empty[0], len(rows[empty[0]]), ruled=True)
                if self._draws.penalized:
                    self._draws.see([set(rows.get(row, ())) for row in range(self._batch)])
            started = time.perf_counter()
            token_ids, logits = _stream(
                self._decoder, input_ids, real, position_ids, steps, self._read, self._draws
            )
            if input_ids.shape[1] == 1 and not allowed:
                self._steps.took(steps, time.perf_counter() - started)
            self._made = token_ids[:, ::-1, 0].tolist()
            self._logits = None if np.isfinite(logits).all() else logits[:, ::-1, 0].copy()
        if self._logits is not None:
            for row in rows:
                last = self._logits[row, len(self._made[row]) - 1 :][:1]
                check_logits(self._first + row, last, best_alone=True)
        made = [tokens.pop() for tokens in self._made]
        return {row: made[row] for row in rows}


def _stream(
    decoder: TokenDecoder,
    input_ids: Ids,
    real: Ids,
    position_ids: Ids,
    steps: int,
    read: Read,
    draws: Draws | None = None,
) -> tuple[Ids, npt.NDArray[np.float32]]:
    """Call `decoder.step`; a prompt goes into a bounded cache piece by piece, each with the whole one's
    angles."""
    if not decoder.streams:
        return decoder.step(input_ids, position_ids, real, steps, draws=draws)
    length, end = int(position_ids.max()) + 1, input_ids.shape[1]
    for part in pieces(end, read):
        wanted, drawn = (steps, draws) if part.stop == end else (1, None)
        call = (input_ids[:, part], position_ids[:, part], real[:, part], wanted, length)
        result = decoder.step(*call, draws=drawn)
    return result


def _allowed(rules: Rules, rows: Collection[int]) -> dict[int, Ids]:
    """Which tokens may come next, of those of `rows` that have rules."""
    return {row: each.allowed() for row, each in enumerate(rules) if each is not None and row in rows}


def _nobody(tokens: int) -> None:
    """Ignore how many tokens were read."""


def _several(
    session: Session, batch: int, read: Read, first: int, draws: Draws | None = None
) -> TokenStrategy:
    """The strategy for tokens that the kernels choose, with drafts where a call may have some."""
    if batch == 1 and session.pools:
        return LookupTokens(session, read, first, draws)
    return SeveralTokens(session, batch, read, first, draws)


def choose_strategy(
    session: Session,
    options: GenerationOptions,
    batch: int,
    read: Read | None = None,
    first: int = 0,
    rules: Rules = (),
) -> TokenStrategy:
    """Return the cheapest strategy that gives the same tokens, and load the graph that it needs. `read` is
    told how many tokens a row were read, after each piece of a prompt but the last. The batch are the rows
    from `first` on of those that were asked for, and draw as such; `rules` are theirs."""
    read = read or _nobody
    sampler = Sampler(options, batch, first)
    needed = best_tokens_needed(options)
    ruled = any(each is not None for each in rules)
    if needed == 1 and session.candidates and not ruled:
        return _several(session, batch, read, first)
    draws = None
    if session.candidates and session.draws:
        draws = draws_of(options, sampler.seed, batch, first, session.bundle.config.vocab_size)
    if ruled:
        if draws is not None:
            return SeveralTokens(session, batch, read, first, draws, rules)
        return AllLogits(session, sampler, batch, read, rules)
    if draws is not None:
        return _several(session, batch, read, first, draws)
    if needed is not None and needed <= session.candidates:
        return BestTokens(session, sampler, batch, read)
    return AllLogits(session, sampler, batch, read)
