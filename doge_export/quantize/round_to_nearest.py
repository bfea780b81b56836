"""Round to nearest, per block of a row: w = scale * (q - zero), with float16 scales, or in two levels.

A block is `choose_block` neighbours of a row. Symmetric, there are no zeros. int8: scale = largest magnitude
/ 127, q in -127..127. int4: scale = the number of largest magnitude / -8, so that this number is hit on its
own side, q in -8..7; its scale may be negative. Asymmetric ("int8-asym", "int4-asym"), q and zero are
unsigned, and scale = (largest - smallest) / 255 or / 15, of a range that has 0 in it. fp8: scale = largest
magnitude / 448, q in float8 e4m3. q is rounded with the scale as it is stored, half to even.

nvfp4 (NVIDIA, "Pretraining Large Language Models with NVFP4", arXiv 2509.25149): q in float4 e2m1, blocks of
16, scale = global scale * the block's, a float8 e4m3; that of the block with the largest number is 448. The
global scale is a float32 of eight significant bits, the block's has four and q two: their product is a
float32, whatever the order, so that every runtime computes the same number. A block that is not all 0 has a
scale that is not 0.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from doge_export.errors import DogeExportError

__all__ = [
    "FORMATS",
    "HALF",
    "LARGEST_BLOCK",
    "Format",
    "Grid",
    "Quantized",
    "block_rows",
    "choose_block",
    "dequantize",
    "grid_between",
    "halved",
    "nearest",
    "nearest_grid",
    "nearest_numbers",
    "on_grid",
    "quantize",
    "quantized_tensors",
    "stored",
]


#: A matrix of its own type in float16, in a file of whatever dtype: no scales, and nothing to choose.
HALF = "fp16"
#: What the kernels read (plugins/kernels/doge_kernels.h).
LARGEST_BLOCK = 128
_ROW = 2**31
_E4M3 = ml_dtypes.float8_e4m3fn
_LARGEST_SCALE, _LEAST_SCALE = 448.0, 2.0**-9  # of e4m3


@dataclass(frozen=True)
class Format:
    """How numbers are stored. `element`: numpy's type, one number an element, of `bits` in the file. A block
    has at most `largest` numbers, a multiple of `step`, which is what kernels read at once. scale = extreme /
    divisor, q in lowest..highest: integers, or, `floating`, the element's own numbers. With `zeros` each
    block has a zero point too, of the same type, and divisor counts the steps of the whole range. `scale`:
    numpy's type of a block's scale; of float8 there is a global scale too."""

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
    scale: Any = np.float16

    @property
    def two_levels(self) -> bool:
        """Whether a matrix has a global scale."""
        return self.scale is _E4M3

    @property
    def scale_bits(self) -> int:
        """Of one block's scale."""
        return int(np.dtype(self.scale).itemsize) * 8


class _Formats(dict[str, Format]):
    """By type: "int8", "int4-asym", or with the largest block behind, "int8:32". "int8-row" and "fp8" have
    one scale a row, "nvfp4" has two levels of them; no kernel of ours reads these."""

    def __missing__(self, dtype: str) -> Format:
        if dtype == "int8-row":
            return replace(self["int8"], largest=_ROW, step=1)
        if dtype == "fp8":
            return Format(_E4M3, ir.DataType.FLOAT8E4M3FN, 8, _ROW, 1, 448.0, -448, 448, floating=True)
        if dtype == "nvfp4":
            e2m1, onnx = ml_dtypes.float4_e2m1fn, ir.DataType.FLOAT4E2M1
            return Format(e2m1, onnx, 4, 16, 16, 6.0, -6, 6, floating=True, scale=_E4M3)
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
    """What a block's numbers may be: `steps` times those of the type, and the integer `zeros` float32
    [n, blocks] that stands for 0, None where 0 does. `scales` [n, blocks] are as they are stored."""

    scales: npt.NDArray[Any]
    zeros: npt.NDArray[np.float32] | None = None
    global_scale: np.float32 | None = None

    @property
    def steps(self) -> npt.NDArray[np.float32]:
        """float32 [n, blocks], a new array."""
        return _steps(self.scales, self.global_scale)

    def near(self, steps: npt.NDArray[np.float32]) -> "Grid":
        """This one with the scales that are nearest to `steps` [n, blocks]."""
        if self.global_scale is None:
            return self._replace(scales=steps.astype(self.scales.dtype))
        return self._replace(scales=_block_scales(steps, self.global_scale))


@dataclass(frozen=True)
class Quantized:
    """`values` [n, k] and `zeros` [n, k / block], None without zero points, in the format's element; `scales`
    [n, k / block] in its type of scales, and the `global_scale`, None where there is one level."""

    values: npt.NDArray[Any]
    scales: npt.NDArray[Any]
    zeros: npt.NDArray[Any] | None = None
    global_scale: np.float32 | None = None


def choose_block(width: int, dtype: str) -> int | None:
    """The block of rows of `width` numbers: the largest that divides them; None where none does."""
    form = FORMATS[dtype]
    sizes = range(min(form.largest, width), 0, -1)
    return next((size for size in sizes if width % size == 0 and size % form.step == 0), None)


def quantize(weight: npt.NDArray[Any], dtype: str) -> Quantized:
    """`weight` [n, k] in a type of FORMATS; `choose_block` must know a block for k.

    Raises:
        DogeExportError: a weight is not finite, or so large that there is no scale for it.
    """
    blocks = _blocks(weight, dtype)
    return on_grid(blocks, nearest_grid(blocks, dtype), dtype)


def halved(weight: npt.NDArray[Any]) -> npt.NDArray[np.float16]:
    """`weight` in HALF.

    Raises:
        DogeExportError: a weight is not finite, or beyond float16.
    """
    with np.errstate(over="ignore"):
        numbers = weight.astype(np.float16)
    _check_finite(numbers, weight, HALF)
    return numbers


def nearest(weight: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.float32]:
    """The float32 numbers that stand for `weight` [n, k] in `dtype`, HALF or a type of FORMATS, rounded to
    nearest."""
    return halved(weight).astype(np.float32) if dtype == HALF else dequantize(quantize(weight, dtype))


def on_grid(blocks: npt.NDArray[np.float32], grid: Grid, dtype: str) -> Quantized:
    """Blocks [n, blocks, block] rounded to the nearest of the grid, and stored."""
    numbers = block_rows(blocks, grid, dtype)
    if grid.zeros is not None:
        numbers += grid.zeros[..., None]
    return stored(numbers.reshape(len(blocks), -1), grid, dtype)


def stored(numbers: npt.NDArray[Any], grid: Grid, dtype: str) -> Quantized:
    """`numbers` [n, k] of the type, zeros added, in the type."""
    element = FORMATS[dtype].element
    if not FORMATS[dtype].floating:
        numbers = numbers.astype(np.int16)
    zeros = None if grid.zeros is None else grid.zeros.astype(np.int16).astype(element)
    return Quantized(numbers.astype(element, copy=False), grid.scales, zeros, grid.global_scale)


def block_rows(blocks: npt.NDArray[np.float32], grid: Grid, dtype: str) -> npt.NDArray[np.float32]:
    """The numbers of the type whose multiples of the scales are nearest to blocks [n, blocks, block]: those
    stored, less the zero. float32."""
    step = grid.steps[..., None]
    zeros = 0 if grid.zeros is None else grid.zeros[..., None]
    return nearest_numbers(np.divide(blocks, step, out=np.zeros_like(blocks), where=step != 0), dtype, zeros)


def nearest_numbers(multiples: npt.NDArray[Any], dtype: str, zeros: Any = 0) -> npt.NDArray[Any]:
    """The numbers of the type that are nearest to `multiples` of a step, whose array is reused: those stored,
    less the zeros."""
    form = FORMATS[dtype]
    if form.floating:
        np.clip(multiples, form.lowest, form.highest, out=multiples)
        return multiples.astype(form.element).astype(multiples.dtype)
    np.clip(np.rint(multiples, out=multiples), form.lowest - zeros, form.highest - zeros, out=multiples)
    return multiples


def dequantize(quantized: Quantized) -> npt.NDArray[np.float32]:
    """scale * (q - zero), float32 [n, k]."""
    values, steps = quantized.values, _steps(quantized.scales, quantized.global_scale)
    blocks = values.astype(np.float32).reshape(*steps.shape, -1)
    if quantized.zeros is not None:
        blocks = blocks - quantized.zeros.astype(np.float32)[..., None]
    result: npt.NDArray[np.float32] = (blocks * steps[..., None]).reshape(values.shape)
    return result


def quantized_tensors(
    weight: ir.TensorProtocol, dtype: str, stem: str, made: Quantized | None = None
) -> tuple[ir.TensorProtocol, ...]:
    """What the file stores for `weight` [n, k]: `<stem>.weight`, `<stem>.scale`, then `<stem>.zero` where
    there are zero points, and `<stem>.global_scale` of no axes where there is one. Those of `made`, or made
    each time they are read."""
    form = FORMATS[dtype]
    rows, width = (int(size) for size in weight.shape.numpy())
    block = choose_block(width, dtype)
    assert block is not None

    def tensor(
        what: str, onnx: ir.DataType, shape: list[int], make: Callable[[], npt.NDArray[Any]]
    ) -> ir.TensorProtocol:
        name = f"{stem}.{what}"
        if made is not None:
            return ir.Tensor(make(), dtype=onnx, name=name)
        return ir.LazyTensor(
            lambda: ir.Tensor(make(), dtype=onnx, name=name), dtype=onnx, shape=ir.Shape(shape), name=name
        )

    def quantized() -> Quantized:
        return made or quantize(weight.numpy(), dtype)

    def grid() -> Grid | Quantized:
        return made or nearest_grid(_blocks(weight.numpy(), dtype), dtype)

    parts = [rows, width // block]
    scales = ir.DataType.from_numpy(np.dtype(form.scale))
    found = [
        tensor("weight", form.onnx, [rows, width], lambda: quantized().values),
        tensor("scale", scales, parts, lambda: grid().scales),
    ]
    if form.zeros:
        found.append(tensor("zero", form.onnx, parts, lambda: np.asarray(quantized().zeros)))
    if form.two_levels:
        whole = ir.DataType.FLOAT
        found.append(tensor("global_scale", whole, [], lambda: np.asarray(grid().global_scale)))
    return tuple(found)


def nearest_grid(blocks: npt.NDArray[np.float32], dtype: str, global_scale: np.float32 | None = None) -> Grid:
    """The grid of rounding to nearest of blocks [n, blocks, block]; in two levels, with the `global_scale`,
    or one for these blocks, which are a matrix then.

    Raises:
        DogeExportError: a number is not finite, or so large that there is no scale for it.
    """
    form = FORMATS[dtype]
    if form.zeros:
        # NaN stays NaN, and is refused
        return grid_between(np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0), dtype)
    places = np.abs(blocks).argmax(-1)[..., None]  # NaN counts as the largest
    extremes = np.take_along_axis(blocks, places, -1)[..., 0]
    if form.divisor > 0:
        extremes = np.abs(extremes)
    if not form.two_levels:
        return Grid(_scales(extremes, dtype))
    if global_scale is None:
        global_scale = _global_scale(extremes, dtype)
    steps = extremes / np.float32(form.divisor)
    return Grid(_block_scales(steps, global_scale), global_scale=global_scale)


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
    _check_finite(scales, extremes, dtype)
    return scales + np.float16(0)  # 0 / -8 is -0: two blocks of zeros shall look alike


def _global_scale(extremes: npt.NDArray[np.float32], dtype: str) -> np.float32:
    """Of eight significant bits, and no smaller than what float32 has all its bits for."""
    _check_finite(extremes, extremes, dtype)
    scale = extremes.max() / np.float32(FORMATS[dtype].divisor * _LARGEST_SCALE)
    return max(np.float32(ml_dtypes.bfloat16(scale)), np.finfo(np.float32).smallest_normal)


def _block_scales(steps: npt.NDArray[np.float32], global_scale: np.float32) -> npt.NDArray[Any]:
    """The e4m3 nearest to `steps`; for what is not 0 the least at least, with which it may still be told
    from 0."""
    scales = np.clip(steps / global_scale, 0, _LARGEST_SCALE)
    return np.where(scales > 0, np.maximum(scales, _LEAST_SCALE), 0).astype(_E4M3)


def _steps(scales: npt.NDArray[Any], global_scale: np.float32 | None) -> npt.NDArray[np.float32]:
    steps: npt.NDArray[np.float32] = scales.astype(np.float32)
    return steps if global_scale is None else steps * global_scale


def _check_finite(scales: npt.NDArray[Any], extremes: npt.NDArray[np.float32], dtype: str) -> None:
    if not np.isfinite(scales).all():
        raise DogeExportError(
            f"A weight of {float(extremes[~np.isfinite(scales)][0])!r} cannot be stored in {dtype}.",
            "Export with --precision fp32.",
        )


def _blocks(weight: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.float32]:
    """float32 [n, k / block, block]."""
    block = choose_block(weight.shape[1], dtype)
    assert block is not None
    return weight.astype(np.float32).reshape(len(weight), -1, block)
