"""How much one call of the runtime does: pieces of a prompt, and tokens that the kernels make alone."""

__all__ = ["MAX_STEPS", "StepsPerCall", "pieces"]

from collections.abc import Callable, Iterator

from doge_export.core.memory import release_memory

#: Tokens that the kernels make in one call at most.
MAX_STEPS = 16
_PIECE = 512  # tokens of a prompt that a bounded cache is given at once
_PATIENCE = 0.02  # seconds that one call may take, but for the second of two tokens


def pieces(length: int, read: Callable[[int], None]) -> Iterator[slice]:
    """Cut a prompt into parts, the last one never empty; `read` is told of each but that. Memory that several
    parts took is given back to the system: no decode step needs as much."""
    for at in range(0, length, _PIECE):
        part = slice(at, min(at + _PIECE, length))
        yield part
        if part.stop < length:
            read(part.stop - part.start)
    if length > _PIECE:
        release_memory()


class StepsPerCall:
    """How many tokens the kernels make in one call: no more than would keep a reader waiting; what a stop
    makes useless was soon made. Two at least, once the time of one is known: of several the kernels look for
    the best alone, which is faster."""

    def __init__(self) -> None:
        self._seconds = float("inf")  # of a token

    def best(self, left: int) -> int:
        """Return the number where `left` are wanted yet: a power of two, so that what is bound for one call
        serves again."""
        min_steps = 1 if self._seconds == float("inf") else 2
        steps = min(left, MAX_STEPS, max(min_steps, int(_PATIENCE / self._seconds)))
        return 1 << (steps.bit_length() - 1)

    def took(self, steps: int, seconds: float) -> None:
        """Learn from a call that read one token and made `steps`."""
        self._seconds = seconds / steps
