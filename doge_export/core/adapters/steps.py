"""What an adapter does to one tensor of a checkpoint, a step at a time, in the order of rounding of PEFT's
merge.

PEFT holds A and B in float32 whatever the checkpoint's type (autocast_adapter_dtype). The sum with a linear
layer's weight is float32 and is rounded once, to the weight's type; what is added to an embedding, and by
mica, is rounded to it before it is added."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["AddBias", "AddProduct", "Array", "Replace", "ReplaceRows", "Rescale", "Step", "cast"]

Array = npt.NDArray[Any]


def cast(values: Array, dtype: npt.DTypeLike) -> Array:
    """Convert to another type; what that does not hold is infinite, which `Adapter.merged` looks for."""
    with np.errstate(all="ignore"):
        return values.astype(dtype)


def _wide(tensor: Array) -> Array:
    """Convert to the type that sums are made in."""
    return tensor if tensor.dtype == np.float64 else tensor.astype(np.float32)


class Step(Protocol):
    """Maps a tensor to the tensor after the step, in its own type and shape."""

    def __call__(self, tensor: Array) -> Array: ...


@dataclass(frozen=True)
class Replace:
    """Replaces a tensor by one that is saved whole, in the checkpoint's type."""

    value: Array

    def __call__(self, tensor: Array) -> Array:
        return cast(self.value, tensor.dtype)


@dataclass(frozen=True)
class ReplaceRows:
    """Rows of an embedding or head that were trained as they are (trainable_token_indices)."""

    rows: tuple[int, ...]
    values: Array

    def __call__(self, tensor: Array) -> Array:
        result = tensor.copy()
        result[list(self.rows)] = cast(cast(self.values, np.float32), tensor.dtype)
        return result


@dataclass(frozen=True)
class AddProduct:
    """W + s B A, or the embedding's W + s (B A)^T (Hu et al., arXiv 2106.09685): `down` is (rank, inputs),
    `up` (outputs, rank)."""

    down: Array
    up: Array
    scale: float
    transposed: bool
    rounded: bool

    def product(self) -> Array:
        """Return the product that is added, in float32."""
        with np.errstate(all="ignore"):
            product = (self.up @ self.down) * np.float32(self.scale)
        return np.asarray(product.T if self.transposed else product)

    def __call__(self, tensor: Array) -> Array:
        added = self.product()
        with np.errstate(all="ignore"):
            if self.rounded:
                added = added.astype(tensor.dtype).astype(np.float32)
            return (_wide(tensor) + added).astype(tensor.dtype)


@dataclass(frozen=True)
class Rescale:
    """DoRA (Liu et al., arXiv 2402.09353): the sum's direction, with the trained `magnitude` of every output;
    of an embedding, of every column."""

    added: AddProduct
    magnitude: Array

    def __call__(self, tensor: Array) -> Array:
        axis = 0 if self.added.transposed else 1
        with np.errstate(all="ignore"):
            total = _wide(tensor) + self.added.product()
            norm = np.sqrt(np.sum(total * total, axis=axis))
            rescaled = np.expand_dims(self.magnitude / norm, axis) * total
            return np.asarray(rescaled, tensor.dtype)


@dataclass(frozen=True)
class AddBias:
    """The bias of B (lora_bias), which the scale multiplies too."""

    bias: Array
    scale: float

    def __call__(self, tensor: Array) -> Array:
        with np.errstate(all="ignore"):
            return (_wide(tensor) + self.bias * np.float32(self.scale)).astype(tensor.dtype)
