"""Tokens of one row that the kernels choose, several a call: one after another, or drafted from the text and
read at once. They are the same either way, since a row's bits do not depend on how it is cut."""

__all__ = ["LookupTokens"]

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from doge_export.runtime.calls import StepsPerCall, pieces
from doge_export.runtime.drafts import PromptLookup, rewindable_length
from doge_export.runtime.draws import DraftDraws, Draws
from doge_export.runtime.sampling import check_logits
from doge_export.runtime.session import Session

Ids = npt.NDArray[np.int64]
Made = tuple[int, float]  # a token and its logit


class LookupTokens:
    """A TokenStrategy for one row, of number `first`. Drafts are made where the text has been at a place like
    this before, for as long as calls with them give tokens faster (drafts.DraftLength)."""

    def __init__(
        self, session: Session, read: Callable[[int], None], first: int = 0, draws: Draws | None = None
    ) -> None:
        decode = session.bundle.manifest.decode
        assert decode is not None
        self._pool = session.pool(1)
        self._slot = self._pool.open()
        self._read, self._first = read, first
        self._draws = None if draws is None else DraftDraws(draws)
        self.capacity = decode.cache.max_length
        self._lookup, self._steps = PromptLookup(rewindable_length(session.bundle)), StepsPerCall()
        self._prompt_read = False
        self._made: list[Made] = []  # after those given out, the last one first
        self._many: dict[int, Draws] = {}  # tokens of a call -> how they are drawn

    def choose(
        self, input_ids: Ids, real: Ids, position_ids: Ids, rows: Mapping[int, Sequence[int]], left: int
    ) -> dict[int, int]:
        """See TokenStrategy."""
        if not self._made:
            seen = rows[0]
            self._made = self._after(input_ids[0].tolist(), seen, left)[::-1]
        token, logit = self._made.pop()
        if not math.isfinite(logit):
            check_logits(self._first, np.array([logit], np.float32), best_alone=True)
        return {0: token}

    def _after(self, tokens: list[int], seen: Sequence[int], left: int) -> list[Made]:
        """Read tokens, and return what comes after the text `seen`, which they end."""
        if not self._prompt_read:
            self._prompt_read = True
            return self._prefill(tokens, seen)
        if draft := self._lookup.draft(seen, left - 1):
            return self._verify(tokens, draft, seen)
        steps = self._steps.best(left)
        made = self._call(tokens, steps, seen)
        self._steps.took(steps, self._pool.seconds)
        self._lookup.length.undrafted(steps, self._pool.seconds)
        return made

    def _prefill(self, tokens: list[int], seen: Sequence[int]) -> list[Made]:
        """Read the prompt, and return the token after it."""
        parts = list(pieces(len(tokens), self._read)) if self._pool.streams else [slice(0, len(tokens))]
        rope = {self._slot: len(tokens)}
        for part in parts[:-1]:
            self._pool.step({self._slot: tokens[part]}, rope_lengths=rope)
        return self._call(tokens[parts[-1]], 1, seen, rope)

    def _verify(self, tokens: list[int], draft: list[int], seen: Sequence[int]) -> list[Made]:
        """Read a token and a draft of what comes after it; returns what does come. What was wrong is
        forgotten."""
        made = self._call([*tokens, *draft], 1, seen, every=True)
        right = self._lookup.verified(draft, [token for token, _ in made], self._pool.seconds)
        self._pool.rewind(self._slot, len(draft) - right)
        return made[: right + 1]

    def _call(
        self,
        tokens: list[int],
        steps: int,
        seen: Sequence[int],
        rope_lengths: Mapping[int, int] | None = None,
        every: bool = False,
    ) -> list[Made]:
        """Read tokens, and return what the kernels choose: of several steps, or `every` time one was read.
        `seen`: the text up to the first of those choices."""
        wanted = (self._slot,) if every else ()
        draws = None if self._draws is None else self._draws.of(tokens[1:] if every else (), seen)
        token_ids, logits = self._pool.step({self._slot: tokens}, steps, wanted, rope_lengths, draws)[
            self._slot
        ]
        return list(zip(token_ids[:, 0].tolist(), logits[:, 0].tolist(), strict=True))
