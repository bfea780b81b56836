"""onnxruntime tensors of any type a graph may use, and their numbers as float32."""

__all__ = ["ELEMENT_TYPES", "empty", "from_array", "to_float32", "zeros"]

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

#: dtype name -> ONNX element type (TensorProto.DataType), bytes of one element.
ELEMENT_TYPES: dict[str, tuple[int, int]] = {
    "float32": (1, 4),
    "float16": (10, 2),
    "bfloat16": (16, 2),
    "int64": (7, 8),
}

#: What holds the bits of a type: numpy has no bfloat16.
_STORAGE: dict[str, npt.DTypeLike] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,
    "int64": np.int64,
}


def zeros(dtype: str, shape: Sequence[int]) -> Any:
    """A tensor of zeros in CPU memory."""
    return _wrap(np.zeros(shape, _STORAGE[dtype]), dtype)


def empty(dtype: str, shape: Sequence[int]) -> tuple[Any, npt.NDArray[Any]]:
    """A tensor to write into, and the array that shares its memory."""
    array = np.empty(shape, _STORAGE[dtype])
    return _wrap(array, dtype), array


def from_array(array: npt.NDArray[np.int64]) -> Any:
    """An int64 tensor over the array's memory."""
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array, dtype=np.int64))


def to_float32(array: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.float32]:
    """The numbers behind the bits of an array that `empty` made."""
    if dtype == "bfloat16":  # the upper half of a float32
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32, copy=False)


def _wrap(array: npt.NDArray[Any], dtype: str) -> Any:
    if dtype == "bfloat16":
        element_type = ELEMENT_TYPES[dtype][0]
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, element_type)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
