"""What a few tokens may overwrite in a row of a bounded cache that is full, saved before they are read."""

__all__ = ["Checkpoint", "LowKeys"]

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from doge_export.runtime import tensors

_AHEAD = 3  # calls, in which as many keys go as may, that a limit serves for
_MOST = 8  # times what has to be saved: more are equal to each other, and not worth it

Keys = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Checkpoint:
    """A row as it was when it had read `length` tokens: the places [layer, head, key] that tokens after them
    may overwrite, and what each part of the cache had there."""

    length: int
    places: tuple[Keys, Keys, Keys]
    parts: tuple[npt.NDArray[Any], ...]

    def put_back(self, parts: Mapping[str, npt.NDArray[Any]], slot: int) -> None:
        """Write it to the row in `slot`."""
        layers, heads, keys = self.places
        for part, saved in zip(parts.values(), self.parts, strict=True):
            part[layers, slot, heads, keys] = saved


class LowKeys:
    """Finds the keys that go first: those of the lowest dt, a head of a layer for itself. A token takes the
    place of one at most, so that `tokens` of them overwrite no others than the `tokens` lowest and their
    equals."""

    def __init__(self) -> None:
        self._limits: dict[int, npt.NDArray[np.float32]] = {}  # slot -> dt [layer, head, 1] of what is low

    def checkpoint(
        self, parts: Mapping[str, npt.NDArray[Any]], dt: tuple[str, str], slot: int, length: int, tokens: int
    ) -> Checkpoint | None:
        """Save what so many `tokens` may overwrite in a row of `length`. None where it is too much: of equal
        keys any may go. `dt`: the name of the part, and its dtype."""
        name, dtype = dt
        used = min(length, parts[name].shape[3])
        weights = tensors.to_float32(parts[name][:, slot, :, :used], dtype)
        least = min(tokens, used)
        limits = self._limits.get(slot)
        found = None if limits is None else _low(weights, limits, least)
        if found is None:
            rank = min(_AHEAD * least, used) - 1
            self._limits[slot] = limits = np.partition(weights, rank)[:, :, rank : rank + 1].copy()
            found = _low(weights, limits, least)
        if found is None:
            return None
        layers, heads, keys = found
        return Checkpoint(length, found, tuple(part[layers, slot, heads, keys] for part in parts.values()))


def _low(
    weights: npt.NDArray[np.float32], limits: npt.NDArray[np.float32], least: int
) -> tuple[Keys, Keys, Keys] | None:
    """Return the places of all weights up to the limits; None where some head has fewer than `least`, or all
    are too many."""
    pairs, heads, used = weights.shape[0] * weights.shape[1], weights.shape[1], weights.shape[2]
    flat = np.flatnonzero(np.ravel(weights <= limits))
    if len(flat) > max(_MOST * least, 1) * pairs:
        return None
    pair, keys = np.divmod(flat, used)
    if np.bincount(pair, minlength=pairs).min() < least:
        return None
    layer, head = np.divmod(pair, heads)
    return layer, head, keys
