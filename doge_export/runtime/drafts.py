"""Drafts by prompt lookup: what followed the last tokens earlier in the text, and how many pay in a call.

Source: Saxena, "Prompt lookup decoding" (2023), which transformers' `prompt_lookup_num_tokens` follows. A
draft is read by the model in one call, which says where it would have gone on otherwise: no token is another
than without.
"""

__all__ = ["DraftLength", "PromptLookup", "TextIndex", "rewindable_length"]

from collections.abc import Iterable, Sequence

from doge_export.core.bundle import Bundle

_SHORTEST, _LONGEST = 2, 4  # tokens at the end of the text that are looked for

#: Drafted tokens of a call that are weighed against each other, and against none.
_LENGTHS = (3, 7, 15)
_MEMORY = 0.9  # what a call leaves of what was known before it
#: The chance of a drafted token hoped for at first, and again after so many tokens without a draft.
_HOPE, _FORGET = 0.6, 128
#: Before a length was tried, a drafted token is taken to cost this share of a call with one token.
_GUESS = 0.15
#: A draft has to be so many times as fast as none: what a token without takes is measured at the beginning,
#: when the processor's caches are cold.
_MARGIN = 1.2


class TextIndex:
    """The tokens of a text, and where it goes on after each few of them."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # a few tokens -> the place behind where they stood last

    def __len__(self) -> int:
        return len(self._tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Take the next tokens of the text."""
        for token in tokens:
            place = len(self._tokens)
            for length in range(_SHORTEST, min(_LONGEST, place) + 1):
                self._after[tuple(self._tokens[place - length :])] = place
            self._tokens.append(token)

    def draft(self, most: int) -> list[int]:
        """Return `most` tokens that may come next, or none: what followed the last ones earlier, the longest
        match first. Where they run into the end of the text, it repeats itself, and so does the draft."""
        end = len(self._tokens)
        for length in range(min(_LONGEST, end), _SHORTEST - 1, -1):
            place = self._after.get(tuple(self._tokens[end - length :]))
            if place is not None:
                again = self._tokens[place:]
                return [again[step % len(again)] for step in range(most)]
        return []


class DraftLength:
    """Chooses how many tokens to draft, by what calls took and how many drafted tokens were right.

    A draft of k tokens, each of which is right with probability a where those before it were, gives
    1 + a + ... + a^k tokens on average; the k that gives most of them in a second is taken, 0 included.
    """

    def __init__(self) -> None:
        self._right, self._tried = _HOPE, 1.0  # drafted tokens, weighed by _MEMORY
        self._seconds: dict[int, float] = {}  # of a call; of 0, of a token without a draft
        self._single = 0.0  # of a call that made one token: several at once take less each

    @property
    def chance(self) -> float:
        """How probably a drafted token is right, where those before it were."""
        return self._right / self._tried

    def best(self, most: int) -> int:
        """Return how many tokens, `most` at most, to draft where there is a draft; 0 too until it is known
        what a token without takes."""
        step = self._seconds.get(0)
        if step is None or most <= 0:
            return 0
        single = max(step, self._single)
        tried = [(seconds - single) / length for length, seconds in self._seconds.items() if length > 0]
        token = max([single * _GUESS, *tried])  # what one more takes, for lengths that were not tried
        rates = {0: _MARGIN / step}
        for length in _LENGTHS:
            if length <= most:
                seconds = self._seconds.get(length, single + token * length)
                rates[length] = sum(self.chance**place for place in range(length + 1)) / seconds
        return max(rates, key=lambda length: rates[length])

    def drafted(self, length: int, right: int, seconds: float) -> None:
        """Learn from a call with a draft of `length` tokens, of which the first `right` were right."""
        judged = right if right == length else right + 1  # what follows a wrong one was not tried
        self._right = _MEMORY * self._right + right
        self._tried = _MEMORY * self._tried + judged
        self._learn(length, seconds)

    def undrafted(self, tokens: int, seconds: float) -> None:
        """Learn from a call that made so many tokens without a draft."""
        self._learn(0, seconds / tokens)
        if tokens == 1:
            self._single = seconds
        forgotten = min(1.0, tokens / _FORGET)
        self._right += forgotten * (_HOPE * self._tried - self._right)

    def _learn(self, length: int, seconds: float) -> None:
        before = self._seconds.get(length)
        self._seconds[length] = seconds if before is None else _MEMORY * before + (1 - _MEMORY) * seconds


def rewindable_length(bundle: Bundle) -> int | None:
    """Return up to how many tokens of a text a wrong draft can be taken back from; None where there is no
    limit. Beyond it a bounded cache that is full forgets what was there before, and a rope may turn otherwise
    for every length of the text."""
    decode = bundle.manifest.decode
    limits = [bundle.config.rope_limit]
    if decode is not None:
        limits += [decode.cache.max_length, decode.cache.slots]
    return min((limit for limit in limits if limit is not None), default=None)


class PromptLookup:
    """Drafts of one text, for as long as calls with them give tokens faster. `rewindable`: see
    `rewindable_length`."""

    def __init__(self, rewindable: int | None) -> None:
        self._rewindable, self._index = rewindable, TextIndex()
        self.length = DraftLength()

    def draft(self, text: Sequence[int], most: int) -> list[int]:
        """Return what may come after the text, which is the one of before and what came since: `most` tokens
        at most, and none where that does not pay."""
        if self._rewindable is not None:
            most = min(most, self._rewindable - len(text))
        length = self.length.best(most)
        if length <= 0:
            return []
        self._index.extend(text[len(self._index) :])
        return self._index.draft(length)

    def verified(self, draft: Sequence[int], made: Sequence[int], seconds: float) -> int:
        """Return how many tokens of the draft are right, where a call of so many seconds chose the tokens
        `made` before each and after the last; and learn from it."""
        right = next((at for at, token in enumerate(draft) if made[at] != token), len(draft))
        self.length.drafted(len(draft), right, seconds)
        return right
