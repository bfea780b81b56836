"""The arrays of a cache that `decode.onnx` writes in place: made, and bound as input and output at once."""

__all__ = ["bind_cache", "empty_cache"]

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from doge_export.core.bundle import DecodeSpec
from doge_export.runtime import tensors


def empty_cache(spec: DecodeSpec, rows: int, keys: int) -> dict[str, npt.NDArray[Any]]:
    """Return an array for each part of the cache by its input's name, [layers, rows, kv_heads, keys] and, of
    keys and values, [..., head_dim]. A position, int64, is -1: nothing is there."""
    specs = {tensor.name: tensor for tensor in spec.inputs}
    arrays = {}
    for name in spec.cache.inputs:
        layers, _, kv_heads, _, *more = specs[name].shape
        arrays[name] = tensors.storage(
            specs[name].dtype, [int(size) for size in (layers, rows, kv_heads, keys, *more)]
        )
        if specs[name].dtype == "int64":
            arrays[name].fill(-1)
    return arrays


def bind_cache(binding: Any, spec: DecodeSpec, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Bind each array as the part that is read and the one that is written."""
    dtypes = {tensor.name: tensor.dtype for tensor in spec.inputs}
    for name, output in zip(spec.cache.inputs, spec.cache.outputs, strict=True):
        tensors.bind(binding.bind_input, name, dtypes[name], arrays[name])
        tensors.bind(binding.bind_output, output, dtypes[name], arrays[name])
