"""Round to nearest, per block of a row: w = scale * q, symmetric, with float16 scales.

A block is `choose_block` neighbours of a row. int8: scale = largest magnitude / 127, q in -127..127.
int4: scale = the number of largest magnitude / -8, so that this number is hit on its own side, q in -8..7;
its scale may be negative. fp8: scale = largest magnitude / 448, q in float8 e4m3. q is rounded with the scale
as float16 has it, half to even.
"""

from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from doge_export.errors import DogeExportError

__all__ = [
    "FORMATS",
    "LARGEST_BLOCK",
    "Format",
    "Quantized",
    "block_rows",
    "choose_block",
    "dequantize",
    "quantize",
    "quantized_tensors",
]


#: What the kernels read (plugins/kernels/doge_kernels.h).
LARGEST_BLOCK = 128
_ROW = 2**31


@dataclass(frozen=True)
class Format:
    """How numbers are stored. `element`: numpy's type, one number an element, of `bits` in the file. A block
    has at most `largest` numbers, a multiple of `step`, which is what kernels read at once. scale = extreme /
    divisor, q in lowest..highest: integers, or, `floating`, the element's own numbers."""

    element: Any
    onnx: ir.DataType
    bits: int
    largest: int
    step: int
    divisor: float
    lowest: int
    highest: int
    floating: bool = False


class _Formats(dict[str, Format]):
    """By type: "int8", "int4", or with the largest block behind, "int8:32". "int8-row" and "fp8" have one
    scale a row; no kernel of ours reads them."""

    def __missing__(self, dtype: str) -> Format:
        if dtype == "int8-row":
            return replace(self["int8"], largest=_ROW, step=1)
        if dtype == "fp8":
            e4m3, onnx = ml_dtypes.float8_e4m3fn, ir.DataType.FLOAT8E4M3FN
            return Format(e4m3, onnx, 8, _ROW, 1, 448.0, -448, 448, floating=True)
        name, _, block = dtype.partition(":")
        if name not in self or not block.isascii() or not block.isdigit():
            raise KeyError(dtype)
        largest, step = int(block), self[name].step
        if not 0 < largest <= LARGEST_BLOCK or largest % step:
            raise KeyError(dtype)
        return replace(self[name], largest=largest)


FORMATS: dict[str, Format] = _Formats(
    int8=Format(np.int8, ir.DataType.INT8, 8, 128, 4, 127.0, -127, 127),
    int4=Format(ml_dtypes.int4, ir.DataType.INT4, 4, 32, 8, -8.0, -8, 7),
)


@dataclass(frozen=True)
class Quantized:
    """`values` int8, or ml_dtypes.int4 or float8_e4m3fn, [n, k], `scales` float16 [n, k / block]."""

    values: npt.NDArray[Any]
    scales: npt.NDArray[np.float16]


def choose_block(width: int, dtype: str) -> int | None:
    """The block of rows of `width` numbers: the largest that divides them; None where none does."""
    form = FORMATS[dtype]
    sizes = range(min(form.largest, width), 0, -1)
    return next((size for size in sizes if width % size == 0 and size % form.step == 0), None)


def quantize(weight: npt.NDArray[Any], dtype: str) -> Quantized:
    """`weight` [n, k] in a type of FORMATS; `choose_block` must know a block for k.

    Raises:
        DogeExportError: a weight is not finite, or so large that float16 has no scale for it.
    """
    blocks, scales = _blocks_and_scales(weight, dtype)
    values, form = block_rows(blocks, scales, dtype), FORMATS[dtype]
    if not form.floating:
        values = values.astype(np.int8)
    return Quantized(values.astype(form.element, copy=False).reshape(weight.shape), scales)


def block_rows(
    blocks: npt.NDArray[np.float32], scales: npt.NDArray[np.float16], dtype: str
) -> npt.NDArray[np.float32]:
    """The numbers of the type nearest to blocks [n, blocks, block] / scales [n, blocks], as float32."""
    form = FORMATS[dtype]
    step = scales.astype(np.float32)[..., None]
    values = np.divide(blocks, step, out=np.zeros_like(blocks), where=step != 0)
    if form.floating:
        np.clip(values, form.lowest, form.highest, out=values)
        return values.astype(form.element).astype(np.float32)
    np.clip(np.rint(values, out=values), form.lowest, form.highest, out=values)
    return values


def dequantize(quantized: Quantized) -> npt.NDArray[np.float32]:
    """scale * q, float32 [n, k]."""
    values, scales = quantized.values, quantized.scales
    blocks = values.astype(np.float32).reshape(*scales.shape, -1)
    result: npt.NDArray[np.float32] = (blocks * scales.astype(np.float32)[..., None]).reshape(values.shape)
    return result


def quantized_tensors(
    weight: ir.TensorProtocol, dtype: str, name: str, scale_name: str, made: Quantized | None = None
) -> tuple[ir.TensorProtocol, ir.TensorProtocol]:
    """What the file stores for `weight` [n, k]: values and scales, those of `made`, or made each time they
    are read."""
    form = FORMATS[dtype]
    rows, width = (int(size) for size in weight.shape.numpy())
    block = choose_block(width, dtype)
    assert block is not None

    if made is not None:
        return ir.Tensor(made.values, dtype=form.onnx, name=name), ir.Tensor(made.scales, name=scale_name)

    def values() -> ir.TensorProtocol:
        return ir.Tensor(quantize(weight.numpy(), dtype).values, dtype=form.onnx, name=name)

    def scales() -> ir.TensorProtocol:
        return ir.Tensor(_blocks_and_scales(weight.numpy(), dtype)[1], name=scale_name)

    shape = ir.Shape([rows, width // block])
    return (
        ir.LazyTensor(values, dtype=form.onnx, shape=ir.Shape([rows, width]), name=name),
        ir.LazyTensor(scales, dtype=ir.DataType.FLOAT16, shape=shape, name=scale_name),
    )


def _blocks_and_scales(
    weight: npt.NDArray[Any], dtype: str
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float16]]:
    """float32 [n, k / block, block] and float16 [n, k / block]."""
    form, block = FORMATS[dtype], choose_block(weight.shape[1], dtype)
    assert block is not None
    blocks = weight.astype(np.float32).reshape(len(weight), -1, block)
    places = np.abs(blocks).argmax(-1)[..., None]  # NaN counts as the largest
    extremes = np.take_along_axis(blocks, places, -1)[..., 0]
    if form.divisor > 0:
        extremes = np.abs(extremes)
    with np.errstate(over="ignore"):
        scales = (extremes / np.float32(form.divisor)).astype(np.float16)
    if not np.isfinite(scales).all():
        raise DogeExportError(
            f"A weight of {float(extremes[~np.isfinite(scales)][0])!r} cannot be stored in {dtype}.",
            "Export with --precision fp32.",
        )
    return blocks, scales + np.float16(0)  # 0 / -8 is -0: two blocks of zeros shall look alike
