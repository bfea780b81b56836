"""Where a text is cut to be read window by window, each from an empty cache."""

__all__ = ["longest_window", "spread_windows"]

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from doge_export.core.bundle import Bundle

_LONGEST = 512


def longest_window(bundle: Bundle) -> int:
    """How many tokens one window has: the model's max_position_embeddings or 512, whichever is less, and no
    more than a static cache holds."""
    length = min(_LONGEST, bundle.config.max_position_embeddings)
    capacity = bundle.manifest.cache.max_length
    return length if capacity is None else min(length, capacity)


def spread_windows(ids: Sequence[int], length: int, most: int) -> npt.NDArray[np.int64]:
    """At most `most` windows [windows, length] from all over `ids`, of which there are `length` at least."""
    count = len(ids) // length
    found = np.array(ids[: count * length], np.int64).reshape(count, length)
    return found[np.unique(np.linspace(0, count - 1, min(most, count)).astype(np.int64))]
