"""A cache's slots by the places of the tokens that they hold."""

from collections.abc import Container, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["cache_trace", "mask_by_position"]


def mask_by_position(
    keep: npt.NDArray[np.bool_], position: npt.NDArray[np.int64], padding: tuple[int, ...], at: int, end: int
) -> npt.NDArray[np.bool_]:
    """A mask of a bounded cache's slots and the call's new tokens, at ... end, as one of all tokens:
    [batch, kv_heads, sequence, end]. `position` are those of the slots, before the call."""
    slots = position.shape[-1]
    result = np.zeros((*keep.shape[:3], end), bool)
    result[..., at:] = keep[..., slots:]
    for row, column, slot in np.argwhere(position >= 0):
        index = position[row, column, slot] + padding[row]
        if index < end:  # a wrong graph may say anything
            result[row, column, :, index] = keep[row, column, :, slot]
    return result


def cache_trace(
    cache: Mapping[str, npt.NDArray[Any]],
    padding: tuple[int, ...],
    end: int,
    parts: Container[str] | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """A cache after `end` tokens of each row, as parts of a trace: `N.key`, `N.value` and, where it has them,
    `N.dt`, by the places of the tokens; what a bounded cache does not hold is NaN."""
    result = {}
    for name, array in cache.items():
        prefix, layer, part = name.split(".")
        if part == "position" or (parts is not None and f"{layer}.{part}" not in parts):
            continue
        position = cache.get(f"{prefix}.{layer}.position")
        result[f"{layer}.{part}"] = (
            array[:, :, :end] if position is None else _by_position(array, position, padding, end)
        )
    return result


def _by_position(
    array: npt.NDArray[Any], position: npt.NDArray[np.int64], padding: tuple[int, ...], end: int
) -> npt.NDArray[np.float32]:
    """A bounded cache's tensor [batch, kv_heads, slots, ...] by the places of the tokens, 0 ... end."""
    result = np.full((*array.shape[:2], end, *array.shape[3:]), np.nan, np.float32)
    for row, column, slot in np.argwhere(position >= 0):
        index = position[row, column, slot] + padding[row]
        if index < end:
            result[row, column, index] = array[row, column, slot]
    return result
