"""How much of the prompts is read in a call beside the rows that make tokens."""

__all__ = ["PromptBudget"]

from collections.abc import Hashable, Mapping
from typing import TypeVar

_Row = TypeVar("_Row", bound=Hashable)

_MOST, _LEAST = 512, 64  # tokens of a call
_PIECE = 32  # tokens of a row at least: fewer take nearly as long
_FIRST = 128
_PATIENCE = 0.02  # seconds that rows which make tokens wait for others' prompts in a call, or
_TIMES = 2  # so many times a call with hardly any prompt
_MEMORY = 0.9


class PromptBudget:
    """Chooses how many tokens of prompts a call reads: no more than rows which make tokens can bear, and as
    many as fit where there are none. It learns from what calls took."""

    def __init__(self) -> None:
        self._tokens = float(_FIRST)
        self._decode_seconds = 0.0  # of a call that reads next to no prompt, for one step
        self._passed: dict[Hashable, int] = {}  # row -> how often it got nothing, one time after another

    def shared(self, wanted: Mapping[_Row, int], decoding: bool) -> dict[_Row, int]:
        """Return how much each row reads of what it wants: equal shares, with what others leave, of so many
        rows as get a piece each. Those that were passed over come first, then those that want least."""
        left, parts = int(self._tokens) if decoding else _MOST, dict[_Row, int]()
        order = sorted(wanted, key=lambda row: (-self._passed.get(row, 0), wanted[row]))
        for served, row in enumerate(order):
            share = max(_PIECE, left // (len(wanted) - served))
            parts[row] = min(wanted[row], share, left)
            left -= parts[row]
            if left <= 0:
                break
        self._passed = {row: self._passed.get(row, 0) + 1 for row in wanted if row not in parts}
        return parts

    def took(self, prompt: int, rows: int, steps: int, seconds: float) -> None:
        """Learn from a call that read `prompt` tokens of prompts beside `rows` that made `steps` tokens."""
        if prompt <= _LEAST:  # a slow processor, or a busy one, is slow with the least, too
            step = seconds / steps
            before = self._decode_seconds or step
            self._decode_seconds = _MEMORY * before + (1 - _MEMORY) * step
        if prompt > 0 and rows > 0:
            bearable = max(_PATIENCE, _TIMES * self._decode_seconds)
            self._tokens *= 0.7 if seconds > bearable else 1.1
            self._tokens = min(max(self._tokens, _LEAST), _MOST)
