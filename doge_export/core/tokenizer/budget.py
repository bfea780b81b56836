"""What a chat template may use: time and memory, counted in units while it runs.

A unit is a few nanoseconds, and the size of a character. The counting is deterministic: the same template
and messages pass or fail on every machine.
"""

__all__ = ["CALL", "ELEMENT", "Budget", "TooMuch", "depth", "shallow", "weigh"]

from collections.abc import ItemsView, KeysView, Mapping, ValuesView
from typing import Any

#: Units of an element of a list, or of a node of the template each time it runs.
ELEMENT = 16
#: Units of a call.
CALL = 64

_UNITS = 1 << 24  # a second or less
_LONGEST = 1 << 22  # characters of one text
_SENTENCE = "it takes more time or memory than a chat may"
_CONTAINERS = (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)


class TooMuch(Exception):
    """A template passed one of its limits."""


class Budget:
    """The units that are left for one rendering. `input_size`: that of the messages, as `weigh` has it."""

    def __init__(self, input_size: int = 0) -> None:
        self.left = _UNITS + 512 * input_size
        self.longest = _LONGEST + 4 * input_size

    def spend(self, units: int) -> None:
        """Count `units`.

        Raises:
            TooMuch: there are not that many left.
        """
        self.left -= units
        if self.left < 0:
            raise TooMuch(_SENTENCE)

    def allow(self, size: int) -> None:
        """Count one operation of `size`: the characters of a text that is about to be made, or its time.

        Raises:
            TooMuch: that is too much at once, or there are not that many units left.
        """
        if size > self.longest:
            raise TooMuch(_SENTENCE)
        self.spend(size)

    def written(self, value: Any) -> None:
        """Count `value` as text, everything inside it included.

        Raises:
            TooMuch: as `allow`.
        """
        self.allow(weigh(value, self.longest))


def weigh(value: Any, max_size: int | None = None) -> int:
    """The size of `value` as text, about: characters, and ELEMENT for each value inside it. What occurs twice
    counts twice. Above `max_size` it stops counting."""
    total, waiting = 0, [value]
    while waiting and (max_size is None or total <= max_size):
        each = waiting.pop()
        total += ELEMENT
        if isinstance(each, str | bytes):
            total += len(each)
        elif isinstance(each, int):
            total += each.bit_length() // 3
        elif isinstance(each, Mapping):
            waiting.extend(each)
            waiting.extend(each.values())
        elif isinstance(each, _CONTAINERS):
            waiting.extend(each)
        elif isinstance(each, range):
            total += ELEMENT * len(each)
        elif hasattr(type(each), "template_contents"):
            waiting.append(type(each).template_contents(each))
    return total


def shallow(value: Any) -> int:
    """The size of `value` itself, without what its elements hold."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, (Mapping, range, *_CONTAINERS)):
        return ELEMENT * len(value)
    return 0


def depth(value: Any) -> int:
    """Return how deep lists and mappings are nested; for a value that `weigh` found small enough."""
    levels, level = 0, [value]
    while level:
        levels += 1
        inner: list[Any] = []
        for each in level:
            if isinstance(each, Mapping):
                inner.extend(each.values())
            elif isinstance(each, _CONTAINERS):
                inner.extend(each)
        level = inner
    return levels
