"""onnxruntime tensors of any type a graph may use, and their numbers as float32.

A tensor here is what onnxruntime's own `OrtValue` wraps: the wrapping costs more than the rest of a small
model's step in Python. The methods that take it are public, its type is in an inner module only. It owns
its memory, except where `empty` made it.
"""

__all__ = [
    "ELEMENT_TYPES",
    "bind",
    "empty",
    "filled",
    "from_array",
    "memory_errors",
    "over",
    "scalar",
    "storage",
    "to_float32",
]

import contextlib
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnxruntime.capi import _pybind_state as capi

#: dtype name -> ONNX element type (TensorProto.DataType), bytes of one element.
ELEMENT_TYPES: dict[str, tuple[int, int]] = {
    "float32": (1, 4),
    "float16": (10, 2),
    "bfloat16": (16, 2),
    "int64": (7, 8),
    "float64": (11, 8),
}

#: What holds the bits of a type: numpy has no bfloat16.
_STORAGE: dict[str, npt.DTypeLike] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,
    "int64": np.int64,
}


def filled(dtype: str, shape: Sequence[int], number: int = 0) -> Any:
    """A tensor filled with one number of the type, given by its bits."""
    array = np.full(shape, number, _STORAGE[dtype])
    tensor = capi.OrtValue.ortvalue_from_shape_and_onnx_type(array.shape, ELEMENT_TYPES[dtype][0], _CPU)
    tensor.update_inplace(array)
    return tensor


def from_array(array: npt.NDArray[np.int64]) -> Any:
    """An int64 tensor with the array's numbers."""
    tensor = capi.OrtValue.ortvalue_from_shape_and_type(array.shape, np.int64, _CPU)
    tensor.update_inplace(np.asarray(array, np.int64, order="C"))
    return tensor


def scalar(number: int) -> Any:
    """An int64 tensor of no axes."""
    return from_array(np.array(number, np.int64))


def empty(dtype: str, shape: Sequence[int]) -> tuple[Any, npt.NDArray[Any]]:
    """A tensor to write into, and the array that shares its memory and must outlive it."""
    array = np.empty(shape, _STORAGE[dtype])
    if dtype == "bfloat16":
        return capi.OrtValue.ortvalue_from_numpy_with_onnx_type(array, ELEMENT_TYPES[dtype][0]), array
    return capi.OrtValue.ortvalue_from_numpy(array, _CPU), array


def to_float32(array: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.float32]:
    """The numbers behind the bits of an array that `empty` made."""
    if dtype == "bfloat16":  # the upper half of a float32
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32, copy=False)


def storage(dtype: str, shape: Sequence[int]) -> npt.NDArray[Any]:
    """An array of zeros that holds the bits of `dtype`. Its memory is taken as it is written."""
    return np.zeros(shape, _STORAGE[dtype])


def over(memory: Any, dtype: str, shape: Sequence[int]) -> npt.NDArray[Any]:
    """The bits of `dtype` in memory that is there already; it must live as long."""
    return np.frombuffer(memory, _STORAGE[dtype]).reshape(shape)


def bind(method: Callable[..., None], name: str, dtype: str, array: npt.NDArray[Any]) -> None:
    """Bind the array's own memory by an IOBinding's `bind_input` or `bind_output`; it must live as long."""
    method(name, "cpu", 0, ELEMENT_TYPES[dtype][0], array.shape, array.ctypes.data)


@contextlib.contextmanager
def memory_errors() -> Generator[None]:
    """Raise MemoryError for what onnxruntime says of a failed allocation."""
    try:
        yield
    except Exception as error:
        if "allocate memory" in str(error):
            raise MemoryError from error
        raise


_CPU = onnxruntime.OrtDevice.make("cpu", 0)._get_c_device()
