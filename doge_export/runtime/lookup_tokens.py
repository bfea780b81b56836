"""Tokens of one row that the kernels choose, several a call: one after another, or drafted from the text and
read at once. They are the same either way, since a row's bits do not depend on how it is cut."""

__all__ = ["LookupTokens"]

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from doge_export.runtime.calls import StepsPerCall, pieces
from doge_export.runtime.drafts import DraftLength, TextIndex
from doge_export.runtime.draws import Draws
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
        self._read, self._first, self._draws = read, first, draws
        self.capacity = decode.cache.max_length
        #: Beyond it a bounded cache that is full forgets what a wrong draft would have to bring back, and a
        #: rope may turn otherwise for every length of the text.
        limits = (self.capacity, decode.cache.slots, session.bundle.config.rope_limit)
        self._rewindable = min((limit for limit in limits if limit is not None), default=None)
        self._text, self._length, self._steps = TextIndex(), DraftLength(), StepsPerCall()
        self._made: list[Made] = []  # after those given out, the last one first
        self._many: dict[int, Draws] = {}  # tokens of a call -> how they are drawn

    def choose(
        self, input_ids: Ids, real: Ids, position_ids: Ids, rows: Mapping[int, Sequence[int]], left: int
    ) -> dict[int, int]:
        """See TokenStrategy."""
        if not self._made:
            seen = rows[0]
            made = self._after(input_ids[0].tolist(), seen, left)
            self._text.extend(token for token, _ in made)
            self._made = made[::-1]
        token, logit = self._made.pop()
        if not math.isfinite(logit):
            check_logits(self._first, np.array([logit], np.float32), best_alone=True)
        return {0: token}

    def _after(self, tokens: list[int], seen: Sequence[int], left: int) -> list[Made]:
        """Read tokens, and return what comes after the text `seen`, which they end."""
        if len(self._text) == 0:
            self._text.extend(seen)
            return self._prefill(tokens, seen)
        if draft := self._draft(left - 1):
            made, right = self._verify(tokens, draft, seen)
            self._length.drafted(len(draft), right, self._pool.seconds)
            return made
        steps = self._steps.best(left)
        made = self._call(tokens, steps, seen)
        self._steps.took(steps, self._pool.seconds)
        self._length.undrafted(steps, self._pool.seconds)
        return made

    def _prefill(self, tokens: list[int], seen: Sequence[int]) -> list[Made]:
        """Read the prompt, and return the token after it."""
        parts = list(pieces(len(tokens), self._read)) if self._pool.streams else [slice(0, len(tokens))]
        rope = {self._slot: len(tokens)}
        for part in parts[:-1]:
            self._pool.step({self._slot: tokens[part]}, rope_lengths=rope)
        return self._call(tokens[parts[-1]], 1, seen, rope)

    def _draft(self, most: int) -> list[int]:
        """What may come after the next token, at most so many; nothing where it does not pay."""
        if self._rewindable is not None:
            most = min(most, self._rewindable - len(self._text))
        length = self._length.best(most)
        return self._text.draft(length) if length > 0 else []

    def _verify(self, tokens: list[int], draft: list[int], seen: Sequence[int]) -> tuple[list[Made], int]:
        """Read a token and a draft of what comes after it; returns what does come, and how many of the draft
        were right. What was wrong is forgotten."""
        made = self._call([*tokens, *draft], 1, seen, every=True)
        right = next((at for at, token in enumerate(draft) if made[at][0] != token), len(draft))
        self._pool.rewind(self._slot, len(draft) - right)
        return made[: right + 1], right

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
        draws = self._drawn(tokens, seen, every)
        token_ids, logits = self._pool.step({self._slot: tokens}, steps, wanted, rope_lengths, draws)[
            self._slot
        ]
        return list(zip(token_ids[:, 0].tolist(), logits[:, 0].tolist(), strict=True))

    def _drawn(self, tokens: list[int], seen: Sequence[int], every: bool) -> Draws | None:
        if self._draws is None:
            return None
        count = len(tokens) if every else 1
        if count not in self._many:
            self._many[count] = self._draws.for_tokens(count)
        draws = self._many[count]
        if draws.penalized:
            known = set(seen)  # a text is long, and what is in it counts once
            draws.see([[*known, *tokens[1 : 1 + more]] for more in range(count)])
        return draws
