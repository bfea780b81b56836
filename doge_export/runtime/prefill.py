"""Prefill of whole rows of tokens from an empty cache, piece by piece."""

__all__ = ["read_rows"]

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from doge_export.runtime.positions import say_long
from doge_export.runtime.session import Session


def read_rows(
    session: Session, ids: npt.NDArray[np.int64], parts: Iterable[slice], rope_length: int = 0
) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    """Yield each of `parts`, which follow each other, of ids [rows, length], with its logits [rows, part,
    vocab]. Nothing is padding. `rope_length`: see Session.step."""
    say_long(session.bundle, ids.shape[1])
    rows = len(ids)
    cache = session.new_cache(rows)
    for part in parts:
        mask = np.ones((rows, part.stop - (part.start if cache.streams else 0)), np.int64)
        positions = np.tile(np.arange(part.start, part.stop), (rows, 1))
        input_ids = np.ascontiguousarray(ids[:, part])
        logits, cache = session.step(input_ids, mask, positions, cache, rope_length)
        yield part, logits
