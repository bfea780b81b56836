"""The model inputs of one call of a bundle's graph in plain onnxruntime, for every kind of cache."""

__all__ = ["call_feed", "empty_cache"]

from typing import Any

import numpy as np
import numpy.typing as npt

from doge_export.core.bundle import CacheSpec

ModelInputs = dict[str, npt.NDArray[Any]]


def empty_cache(spec: CacheSpec, rows: int, dtype: npt.DTypeLike) -> ModelInputs:
    """Return the cache's tensors before the first token; keys, values and dt of `dtype`."""
    shape = (rows, spec.kv_heads, spec.max_length or 0)

    def empty(name: str) -> npt.NDArray[Any]:
        if name.endswith(".position"):
            return np.full(shape, -1, np.int64)
        if name.endswith(".dt"):
            return np.zeros((rows, spec.dt_heads or spec.kv_heads, spec.max_length or 0), dtype)
        return np.zeros((*shape, spec.head_dim), dtype)

    return {name: empty(name) for name in spec.inputs}


def call_feed(
    spec: CacheSpec,
    input_ids: npt.NDArray[np.int64],
    attention_mask: npt.NDArray[np.int64],
    position_ids: npt.NDArray[np.int64],
    rope_length: int | None = None,
) -> ModelInputs:
    """Return all inputs but the cache, for a call with input_ids [batch, sequence]. `attention_mask` is of
    all tokens up to the call's last one, whatever the graph wants. `rope_length`: None where the graph has no
    such input."""
    rows, count = input_ids.shape
    end = attention_mask.shape[1]
    inputs: ModelInputs = {"input_ids": input_ids, "position_ids": position_ids}
    if spec.kind == "static":
        attention_mask = np.pad(attention_mask, ((0, 0), (0, (spec.max_length or 0) - end)))
        inputs["cache_position"] = np.full(rows, end - count, np.int64)
    elif spec.kind == "bounded":
        attention_mask = attention_mask[:, end - count :]
    if rope_length is not None:
        inputs["rope_length"] = np.array(rope_length, np.int64)
    return {**inputs, "attention_mask": attention_mask}
