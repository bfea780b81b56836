"""A text as windows of tokens, each read from an empty cache."""

__all__ = ["windows"]

import numpy as np
import numpy.typing as npt

from doge_export.bundle import Bundle
from doge_export.errors import DogeExportError
from doge_export.tokenizer import Tokenizer

_LONGEST = 512


def windows(bundle: Bundle, text: str, most: int) -> npt.NDArray[np.int64]:
    """At most `most` windows [windows, length] from all over the text, of the model's max_position_embeddings
    or 512 tokens, whichever is less.

    Raises:
        DogeExportError: the text is shorter than one window.
    """
    length = min(_LONGEST, bundle.config.max_position_embeddings)
    capacity = bundle.manifest.cache.max_length
    length = length if capacity is None else min(length, capacity)
    ids = np.array(Tokenizer.load(bundle.path).encode(text), np.int64)
    count = len(ids) // length
    if count == 0:
        raise DogeExportError(
            f"The text has {len(ids)} tokens, and one window takes {length}.", "Give a longer one."
        )
    found = ids[: count * length].reshape(count, length)
    return found[np.unique(np.linspace(0, count - 1, min(most, count)).astype(np.int64))]
