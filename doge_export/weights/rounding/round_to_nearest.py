"""Round to nearest, per block of a row: w = scale * (q - zero), with float16 scales, or in two levels.

A block is `WeightFormat.block_of` neighbours of a row. Symmetric, there are no zeros. int8: scale = largest
magnitude / 127, q in -127..127. int4: scale = the number of largest magnitude / -8, so that this number is
hit on its own side, q in -8..7; its scale may be negative. Asymmetric ("int8-asym", "int4-asym"), q and zero
are unsigned, and scale = (largest - smallest) / 255 or / 15, of a range that has 0 in it. fp8: scale =
largest magnitude / 448, q in float8 e4m3. q is rounded with the scale as it is stored, half to even.

nvfp4 (NVIDIA, "Pretraining Large Language Models with NVFP4", arXiv 2509.25149): q in float4 e2m1, blocks of
16, scale = global scale * the block's, a float8 e4m3; that of the block with the largest number is 448. The
global scale is a float32 of eight significant bits, the block's has four and q two: their product is a
float32, whatever the order, so that every runtime computes the same number. A block that is not all 0 has a
scale that is not 0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from doge_export.core.errors import DogeExportError
from doge_export.weights.arrays import Array, Matrix
from doge_export.weights.formats import HALF, Number, WeightFormat

__all__ = [
    "Grid",
    "Quantized",
    "block_rows",
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


_E4M3 = ml_dtypes.float8_e4m3fn
_LARGEST_SCALE, _LEAST_SCALE = 448.0, 2.0**-9  # of e4m3
Floats = npt.NDArray[np.floating]


class Grid(NamedTuple):
    """What a block's numbers may be: `steps` times those of the type, and the integer `zeros` float32
    [n, blocks] that stands for 0, None where 0 does. `scales` [n, blocks] are as they are stored."""

    scales: Array
    zeros: Matrix | None = None
    global_scale: np.float32 | None = None

    @property
    def steps(self) -> Matrix:
        """float32 [n, blocks], a new array."""
        return _steps(self.scales, self.global_scale)

    def near(self, steps: Matrix) -> "Grid":
        """This one with the scales that are nearest to `steps` [n, blocks]."""
        if self.global_scale is None:
            return self._replace(scales=steps.astype(self.scales.dtype))
        return self._replace(scales=_block_scales(steps, self.global_scale))


@dataclass(frozen=True)
class Quantized:
    """`values` [n, k] and `zeros` [n, k / block], None without zero points, in the format's element; `scales`
    [n, k / block] in its type of scales, and the `global_scale`, None where there is one level."""

    values: Array
    scales: Array
    zeros: Array | None = None
    global_scale: np.float32 | None = None


def quantize(weight: Array, form: WeightFormat) -> Quantized:
    """Round `weight` [n, k] to a format with scales that has a block for k.

    Raises:
        DogeExportError: a weight is not finite, or so large that there is no scale for it.
    """
    blocks = _blocks(weight, form)
    return on_grid(blocks, nearest_grid(blocks, form), form)


def halved(weight: Array) -> npt.NDArray[np.float16]:
    """Round `weight` to HALF.

    Raises:
        DogeExportError: a weight is not finite, or beyond float16.
    """
    with np.errstate(over="ignore"):
        numbers = weight.astype(np.float16)
    _check_finite(numbers, weight, HALF)
    return numbers


def nearest(weight: Array, form: WeightFormat) -> Matrix:
    """The float32 numbers that stand for `weight` [n, k], rounded to nearest, in HALF or a format with
    scales."""
    return halved(weight).astype(np.float32) if form == HALF else dequantize(quantize(weight, form))


def on_grid(blocks: Matrix, grid: Grid, form: WeightFormat) -> Quantized:
    """Blocks [n, blocks, block] rounded to the nearest of the grid, and stored."""
    numbers = block_rows(blocks, grid, form)
    if grid.zeros is not None:
        numbers += grid.zeros[..., None]
    return stored(numbers.reshape(len(blocks), -1), grid, form)


def stored(numbers: Array, grid: Grid, form: WeightFormat) -> Quantized:
    """Store `numbers` [n, k], zeros added, in the format's type."""
    element = form.number.element
    if not form.number.floating:
        numbers = numbers.astype(np.int16)
    zeros = None if grid.zeros is None else grid.zeros.astype(np.int16).astype(element)
    return Quantized(numbers.astype(element, copy=False), grid.scales, zeros, grid.global_scale)


def block_rows(blocks: Matrix, grid: Grid, form: WeightFormat) -> Matrix:
    """The numbers of the type whose multiples of the scales are nearest to blocks [n, blocks, block]: those
    stored, less the zero. float32."""
    step = grid.steps[..., None]
    zeros = 0 if grid.zeros is None else grid.zeros[..., None]
    return nearest_numbers(
        np.divide(blocks, step, out=np.zeros_like(blocks), where=step != 0), form.number, zeros
    )


def nearest_numbers(multiples: Floats, number: Number, zeros: Floats | int = 0) -> Floats:
    """The numbers of the type that are nearest to `multiples` of a step, whose array is reused: those stored,
    less the zeros."""
    if number.floating:
        np.clip(multiples, number.lowest, number.highest, out=multiples)
        return multiples.astype(number.element).astype(multiples.dtype)
    np.clip(np.rint(multiples, out=multiples), number.lowest - zeros, number.highest - zeros, out=multiples)
    return multiples


def dequantize(quantized: Quantized) -> Matrix:
    """scale * (q - zero), float32 [n, k]."""
    values, steps = quantized.values, _steps(quantized.scales, quantized.global_scale)
    blocks = values.astype(np.float32).reshape(*steps.shape, -1)
    if quantized.zeros is not None:
        blocks = blocks - quantized.zeros.astype(np.float32)[..., None]
    result: Matrix = (blocks * steps[..., None]).reshape(values.shape)
    return result


def quantized_tensors(
    weight: ir.TensorProtocol, form: WeightFormat, stem: str, rounded: Quantized | None = None
) -> tuple[ir.TensorProtocol, ...]:
    """What the file stores for `weight` [n, k]: `<stem>.weight`, `<stem>.scale`, then `<stem>.zero` where
    there are zero points, and `<stem>.global_scale` of no axes where there is one. Those of `rounded`, or
    computed each time they are read."""
    rows, width = (int(size) for size in weight.shape.numpy())
    block = form.block_of(width)
    assert block is not None

    def tensor(
        what: str, onnx: ir.DataType, shape: list[int], make: Callable[[], Array]
    ) -> ir.TensorProtocol:
        name = f"{stem}.{what}"
        if rounded is not None:
            return ir.Tensor(make(), dtype=onnx, name=name)
        return ir.LazyTensor(
            lambda: ir.Tensor(make(), dtype=onnx, name=name), dtype=onnx, shape=ir.Shape(shape), name=name
        )

    def quantized() -> Quantized:
        return rounded or quantize(weight.numpy(), form)

    def grid() -> Grid | Quantized:
        return rounded or nearest_grid(_blocks(weight.numpy(), form), form)

    parts = [rows, width // block]
    scales = ir.DataType.from_numpy(form.scale)
    tensors = [
        tensor("weight", form.number.onnx, [rows, width], lambda: quantized().values),
        tensor("scale", scales, parts, lambda: grid().scales),
    ]
    if form.zeros:
        tensors.append(tensor("zero", form.number.onnx, parts, lambda: np.asarray(quantized().zeros)))
    if form.two_levels:
        whole = ir.DataType.FLOAT
        tensors.append(tensor("global_scale", whole, [], lambda: np.asarray(grid().global_scale)))
    return tuple(tensors)


def nearest_grid(blocks: Matrix, form: WeightFormat, global_scale: np.float32 | None = None) -> Grid:
    """The grid of rounding to nearest of blocks [n, blocks, block]; in two levels, with the `global_scale`,
    or one for these blocks, which are a matrix then.

    Raises:
        DogeExportError: a number is not finite, or so large that there is no scale for it.
    """
    if form.zeros:
        # NaN stays NaN, and is refused
        return grid_between(np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0), form)
    places = np.abs(blocks).argmax(-1)[..., None]  # NaN counts as the largest
    extremes = np.take_along_axis(blocks, places, -1)[..., 0]
    if form.number.divisor > 0:
        extremes = np.abs(extremes)
    if not form.two_levels:
        return Grid(_scales(extremes, form))
    if global_scale is None:
        global_scale = _global_scale(extremes, form)
    steps = extremes / np.float32(form.number.divisor)
    return Grid(_block_scales(steps, global_scale), global_scale=global_scale)


def grid_between(lowest: Matrix, highest: Matrix, form: WeightFormat) -> Grid:
    """The grid of an asymmetric type from `lowest` <= 0 to `highest` >= 0, each [n, blocks]."""
    scales = _scales(highest - lowest, form)
    step = scales.astype(np.float32)
    zeros = np.rint(np.divide(-lowest, step, out=np.zeros_like(step), where=step != 0))
    return Grid(scales, np.clip(zeros, form.number.lowest, form.number.highest))


def _scales(extremes: Matrix, form: WeightFormat) -> npt.NDArray[np.float16]:
    with np.errstate(over="ignore", invalid="ignore"):
        scales = (extremes / np.float32(form.number.divisor)).astype(np.float16)
    _check_finite(scales, extremes, form)
    return scales + np.float16(0)  # 0 / -8 is -0: two blocks of zeros shall look alike


def _global_scale(extremes: Matrix, form: WeightFormat) -> np.float32:
    """The scale of a whole matrix: of eight significant bits, and no smaller than float32's least normal
    number."""
    _check_finite(extremes, extremes, form)
    scale = extremes.max() / np.float32(form.number.divisor * _LARGEST_SCALE)
    return max(np.float32(ml_dtypes.bfloat16(scale)), np.finfo(np.float32).smallest_normal)


def _block_scales(steps: Matrix, global_scale: np.float32) -> Array:
    """The e4m3 nearest to `steps`; for a step that is not 0 at least the least that may still be told from
    0."""
    scales = np.clip(steps / global_scale, 0, _LARGEST_SCALE)
    return np.where(scales > 0, np.maximum(scales, _LEAST_SCALE), 0).astype(_E4M3)


def _steps(scales: Array, global_scale: np.float32 | None) -> Matrix:
    steps: Matrix = scales.astype(np.float32)
    return steps if global_scale is None else steps * global_scale


def _check_finite(scales: Array, extremes: Array, form: WeightFormat) -> None:
    finite = np.isfinite(scales)
    if not finite.all():
        raise DogeExportError(
            f"A weight of {float(extremes[~finite].astype(np.float64)[0])!r} cannot be stored in {form}.",
            "Export with --precision fp32.",
        )


def _blocks(weight: Array, form: WeightFormat) -> Matrix:
    """float32 [n, k / block, block]."""
    block = form.block_of(weight.shape[1])
    assert block is not None
    return weight.astype(np.float32).reshape(len(weight), -1, block)
