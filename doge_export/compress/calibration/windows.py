"""A text as windows of tokens, each read from an empty cache."""

__all__ = ["windows"]

import numpy as np
import numpy.typing as npt

from doge_export.core.bundle import Bundle
from doge_export.core.errors import DogeExportError
from doge_export.core.tokenizer import Tokenizer
from doge_export.evaluate.windows import longest_window, spread_windows


def windows(bundle: Bundle, text: str, max_windows: int) -> npt.NDArray[np.int64]:
    """Token ids [windows, length] of at most `max_windows` windows from all over the text, each as long as
    the model's max_position_embeddings or 512 tokens, whichever is less.

    Raises:
        DogeExportError: the text is shorter than one window.
    """
    ids, length = Tokenizer.load(bundle.path).encode(text), longest_window(bundle)
    if len(ids) < length:
        raise DogeExportError(
            f"The text has {len(ids)} tokens, and one window takes {length}.", "Give a longer one."
        )
    return spread_windows(ids, length, max_windows)
