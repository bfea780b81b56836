"""Round to nearest, per block of a row: w = scale * (q - zero), with float16 scales.

A block is `choose_block` neighbours of a row. Symmetric, there are no zeros. int8: scale = largest magnitude
/ 127, q in -127..127. int4: scale = the number of largest magnitude / -8, so that this number is hit on its
own side, q in -8..7; its scale may be negative. Asymmetric ("int8-asym", "int4-asym"), q and zero are
unsigned, and scale = (largest - smallest) / 255 or / 15, of a range that has 0 in it. fp8: scale = largest
magnitude / 448, q in float8 e4m3. q is rounded with the scale as float16 has it, half to even.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from doge_export.errors import DogeExportError

__all__ = [
    "FORMATS",
    "LARGEST_BLOCK",
    "Format",
    "Grid",
    "Quantized",
    "block_rows",
    "choose_block",
    "dequantize",
    "grid_between",
    "nearest_grid",
    "on_grid",
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
    divisor, q in lowest..highest: integers, or, `floating`, the element's own numbers. With `zeros` each
    block has a zero point too, of the same type, and divisor counts the steps of the whole range."""

    element: Any
    onnx: ir.DataType
    bits: int
    largest: int
    step: int
    divisor: float
    lowest: int
    highest: int
    floating: bool = False
    zeros: bool = False


class _Formats(dict[str, Format]):
    """By type: "int8", "int4-asym", or with the largest block behind, "int8:32". "int8-row" and "fp8" have
    one scale a row; no kernel of ours reads them."""

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
    {
        "int8": Format(np.int8, ir.DataType.INT8, 8, 128, 4, 127.0, -127, 127),
        "int4": Format(ml_dtypes.int4, ir.DataType.INT4, 4, 32, 8, -8.0, -8, 7),
        "int8-asym": Format(np.uint8, ir.DataType.UINT8, 8, 128, 4, 255.0, 0, 255, zeros=True),
        "int4-asym": Format(ml_dtypes.uint4, ir.DataType.UINT4, 4, 32, 8, 15.0, 0, 15, zeros=True),
    }
)


class Grid(NamedTuple):
    """What a block's numbers may be: `scales` float16 [n, blocks] times integers, and the integer `zeros`
    float32 [n, blocks] that stands for 0, None where 0 does."""

    scales: npt.NDArray[np.float16]
    zeros: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Quantized:
    """`values` [n, k] and `zeros` [n, k / block], None without zero points, in the format's element; `scales`
    float16 [n, k / block]."""

    values: npt.NDArray[Any]
    scales: npt.NDArray[np.float16]
    zeros: npt.NDArray[Any] | None = None


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
    blocks = _blocks(weight, dtype)
    return on_grid(blocks, nearest_grid(blocks, dtype), dtype)


def on_grid(blocks: npt.NDArray[np.float32], grid: Grid, dtype: str) -> Quantized:
    """Blocks [n, blocks, block] rounded to the nearest of the grid, and stored."""
    element = FORMATS[dtype].element
    integers = block_rows(blocks, grid, dtype)
    zeros = None
    if grid.zeros is not None:
        integers += grid.zeros[..., None]
        zeros = grid.zeros.astype(np.int16).astype(element)
    values = integers.reshape(len(blocks), -1)
    if not FORMATS[dtype].floating:
        values = values.astype(np.int16)
    return Quantized(values.astype(element, copy=False), grid.scales, zeros)


def block_rows(blocks: npt.NDArray[np.float32], grid: Grid, dtype: str) -> npt.NDArray[np.float32]:
    """The numbers of the type whose multiples of the scales are nearest to blocks [n, blocks, block]: those
    stored, less the zero. float32."""
    form = FORMATS[dtype]
    step = grid.scales.astype(np.float32)[..., None]
    zeros = 0 if grid.zeros is None else grid.zeros[..., None]
    values = np.divide(blocks, step, out=np.zeros_like(blocks), where=step != 0)
    if form.floating:
        np.clip(values, form.lowest, form.highest, out=values)
        return values.astype(form.element).astype(np.float32)
    np.clip(np.rint(values, out=values), form.lowest - zeros, form.highest - zeros, out=values)
    return values


def dequantize(quantized: Quantized) -> npt.NDArray[np.float32]:
    """scale * (q - zero), float32 [n, k]."""
    values, scales = quantized.values, quantized.scales
    blocks = values.astype(np.float32).reshape(*scales.shape, -1)
    if quantized.zeros is not None:
        blocks = blocks - quantized.zeros.astype(np.float32)[..., None]
    result: npt.NDArray[np.float32] = (blocks * scales.astype(np.float32)[..., None]).reshape(values.shape)
    return result


def quantized_tensors(
    weight: ir.TensorProtocol, dtype: str, stem: str, made: Quantized | None = None
) -> tuple[ir.TensorProtocol, ...]:
    """What the file stores for `weight` [n, k]: `<stem>.weight`, `<stem>.scale`, and `<stem>.zero` where
    there are zero points. Those of `made`, or made each time they are read."""
    form = FORMATS[dtype]
    rows, width = (int(size) for size in weight.shape.numpy())
    block = choose_block(width, dtype)
    assert block is not None

    def values() -> ir.TensorProtocol:
        values = (made or quantize(weight.numpy(), dtype)).values
        return ir.Tensor(values, dtype=form.onnx, name=f"{stem}.weight")

    def scales() -> ir.TensorProtocol:
        return ir.Tensor(grid().scales if made is None else made.scales, name=f"{stem}.scale")

    def zeros() -> ir.TensorProtocol:
        found = made or quantize(weight.numpy(), dtype)
        assert found.zeros is not None
        return ir.Tensor(found.zeros, dtype=form.onnx, name=f"{stem}.zero")

    def grid() -> Grid:
        return nearest_grid(_blocks(weight.numpy(), dtype), dtype)

    if made is not None:
        return (values(), scales(), *([zeros()] if form.zeros else []))
    shape, parts = ir.Shape([rows, width // block]), ir.Shape([rows, width])
    found = (
        ir.LazyTensor(values, dtype=form.onnx, shape=parts, name=f"{stem}.weight"),
        ir.LazyTensor(scales, dtype=ir.DataType.FLOAT16, shape=shape, name=f"{stem}.scale"),
    )
    if not form.zeros:
        return found
    return (*found, ir.LazyTensor(zeros, dtype=form.onnx, shape=shape, name=f"{stem}.zero"))


def nearest_grid(blocks: npt.NDArray[np.float32], dtype: str) -> Grid:
    """The grid of rounding to nearest of blocks [n, blocks, block].

    Raises:
        DogeExportError: a number is not finite, or so large that float16 has no scale for it.
    """
    form = FORMATS[dtype]
    if form.zeros:
        # NaN stays NaN, and is refused
        return grid_between(np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0), dtype)
    places = np.abs(blocks).argmax(-1)[..., None]  # NaN counts as the largest
    extremes = np.take_along_axis(blocks, places, -1)[..., 0]
    if form.divisor > 0:
        extremes = np.abs(extremes)
    return Grid(_scales(extremes, dtype))


def grid_between(lowest: npt.NDArray[np.float32], highest: npt.NDArray[np.float32], dtype: str) -> Grid:
    """The grid of an asymmetric type from `lowest` <= 0 to `highest` >= 0, each [n, blocks]."""
    form = FORMATS[dtype]
    scales = _scales(highest - lowest, dtype)
    step = scales.astype(np.float32)
    zeros = np.rint(np.divide(-lowest, step, out=np.zeros_like(step), where=step != 0))
    return Grid(scales, np.clip(zeros, form.lowest, form.highest))


def _scales(extremes: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[np.float16]:
    with np.errstate(over="ignore", invalid="ignore"):
        scales = (extremes / np.float32(FORMATS[dtype].divisor)).astype(np.float16)
    if not np.isfinite(scales).all():
        raise DogeExportError(
            f"A weight of {float(extremes[~np.isfinite(scales)][0])!r} cannot be stored in {dtype}.",
            "Export with --precision fp32.",
        )
    return scales + np.float16(0)  # 0 / -8 is -0: two blocks of zeros shall look alike


def _blocks(weight: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.float32]:
    """float32 [n, k / block, block]."""
    block = choose_block(weight.shape[1], dtype)
    assert block is not None
    return weight.astype(np.float32).reshape(len(weight), -1, block)
