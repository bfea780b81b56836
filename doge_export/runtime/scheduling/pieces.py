"""How much of the prompts is read in a call beside the rows that make tokens."""

__all__ = ["PromptBudget"]

from collections.abc import Mapping

_MOST, _LEAST = 512, 32  # tokens of a call
_FIRST = 128
_PATIENCE = 0.02  # seconds that rows which make tokens wait for others' prompts in a call, or
_TIMES = 2  # so many times a call without prompts
_MEMORY = 0.9


class PromptBudget:
    """Chooses how many tokens of prompts a call reads: no more than rows which make tokens can bear, and as
    many as fit where there are none. It learns from what calls took."""

    def __init__(self) -> None:
        self._tokens = float(_FIRST)
        self._decode_seconds = 0.0  # of a call that reads no prompt, for one step

    def shared(self, wanted: Mapping[int, int], decoding: bool) -> dict[int, int]:
        """Return how much each row reads of what it wants: equal shares, with what others leave."""
        left, parts = int(self._tokens) if decoding else _MOST, {}
        for served, row in enumerate(sorted(wanted, key=lambda row: wanted[row])):
            share = max(1, left // (len(wanted) - served))
            parts[row] = min(wanted[row], share)
            left -= parts[row]
            if left <= 0:
                break
        return parts

    def took(self, prompt: int, rows: int, steps: int, seconds: float) -> None:
        """Learn from a call that read `prompt` tokens of prompts beside `rows` that made `steps` tokens."""
        if prompt == 0:
            step = seconds / steps
            before = self._decode_seconds or step
            self._decode_seconds = _MEMORY * before + (1 - _MEMORY) * step
        elif rows > 0:
            bearable = max(_PATIENCE, _TIMES * self._decode_seconds)
            self._tokens *= 0.7 if seconds > bearable else 1.1
            self._tokens = min(max(self._tokens, _LEAST), _MOST)
