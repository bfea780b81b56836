"""Rounding per block: how far off it may be, what must come out exactly, the block, the bytes."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from doge_export.core.errors import DogeExportError
from doge_export.weights import dequantize, quantize, quantized_tensors
from tests._precision import form

LIMITS = {"int8": (-127, 127), "int4": (-8, 7)}
UNSIGNED = {"int8-asym": (128, 255), "int4-asym": (32, 15)}  # the largest block and number


@pytest.mark.parametrize(
    ("dtype", "width", "block"),
    [
        ("int8", 128, 128),
        ("int8", 256, 128),
        ("int8", 192, 96),
        ("int8", 684, 76),
        ("int8", 48, 48),
        ("int8", 12, 12),
        ("int8", 4 * 131, 4),
        ("int8", 6, None),
        ("int8", 257, None),
        ("int4", 256, 32),
        ("int4", 48, 24),
        ("int4", 8 * 131, 8),
        ("int4", 12, None),
        ("int4", 684, None),
        ("int8:32", 128, 32),
        ("int8:32", 684, 12),
        ("int4:128", 256, 128),
        ("int4:16", 48, 16),
    ],
)
def test_the_block_is_the_largest_that_divides(dtype: str, width: int, block: int | None) -> None:
    assert form(dtype).block_of(width) == block


@pytest.mark.parametrize("width", [1, 6, 257])
def test_float8_is_the_nearest_number(width: int) -> None:
    """One scale a row, whatever its width; against every number that the type has."""
    weight = np.random.default_rng(width).normal(0, 3, (5, width)).astype(np.float32)
    weight[2] = 0
    quantized = quantize(weight, form("fp8"))
    assert form("fp8").block_of(width) == width and quantized.scales.shape == (5, 1)
    assert quantized.values.dtype == ml_dtypes.float8_e4m3fn
    numbers = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    numbers = numbers[np.isfinite(numbers)]
    scales = quantized.scales.astype(np.float64)[..., None]
    least = np.abs(numbers * scales - weight[..., None]).min(-1)
    np.testing.assert_allclose(np.abs(dequantize(quantized) - weight), least, atol=1e-6)
    largest = np.abs(quantized.values.astype(np.float32)).max(1)
    assert (largest[[0, 1, 3, 4]] == 448).all() and largest[2] == 0


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@given(
    seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 5), blocks=st.integers(1, 3), power=st.integers(-8, 8)
)
def test_no_number_is_further_off_than_half_a_step(
    dtype: str, seed: int, rows: int, blocks: int, power: int
) -> None:
    """A step is the scale. In int4 the far end of the other side is cut: there it may be a whole one."""
    size = {"int8": 128, "int4": 32}[dtype]
    weight = np.random.default_rng(seed).normal(0, 2.0**power, (rows, blocks * size)).astype(np.float32)
    quantized = quantize(weight, form(dtype))
    lowest, highest = LIMITS[dtype]
    values = quantized.values.astype(np.int8)
    assert values.min() >= lowest and values.max() <= highest
    assert quantized.scales.dtype == np.float16 and quantized.scales.shape == (rows, blocks)
    step = np.abs(quantized.scales.astype(np.float64))[..., None]
    error = np.abs(dequantize(quantized).astype(np.float64) - weight).reshape(rows, blocks, size)
    cut = (values == highest).reshape(error.shape) if dtype == "int4" else np.zeros(error.shape, bool)
    assert (error <= step * np.where(cut, 1.01, 0.5001)).all()


@pytest.mark.parametrize("dtype", UNSIGNED)
@given(seed=st.integers(0, 2**32 - 1), power=st.integers(-8, 8), shift=st.sampled_from([-4, -0.5, 0, 1, 4]))
def test_with_zero_points_nothing_is_further_off_than_half_a_step(
    dtype: str, seed: int, power: int, shift: float
) -> None:
    """The zero is whole, so that a range is cut by up to half a step, and float16's scale ends a little
    before it."""
    size, highest = UNSIGNED[dtype]
    weight = (np.random.default_rng(seed).normal(shift, 1, (3, 2 * size)) * 2.0**power).astype(np.float32)
    quantized = quantize(weight, form(dtype))
    assert quantized.zeros is not None and quantized.zeros.shape == quantized.scales.shape == (3, 2)
    values, step = quantized.values.astype(int), quantized.scales.astype(np.float64)[..., None]
    assert values.min() >= 0 and values.max() <= highest
    error = np.abs(dequantize(quantized).astype(np.float64) - weight).reshape(3, 2, size)
    cut = np.isin(values, (0, highest)).reshape(error.shape)
    assert (error <= step * np.where(cut, 1.15, 0.5001)).all()
    # Of numbers on one side of 0, that side has all the steps.
    if abs(shift) == 4:
        symmetric = quantize(weight, form(dtype.removesuffix("-asym")))
        assert np.square(error).sum() < 0.5 * np.square(dequantize(symmetric) - weight).sum()


def test_the_extreme_takes_the_extreme_value() -> None:
    weight = np.zeros((2, 32), np.float32)
    weight[0, 3], weight[0, 4], weight[1, 5], weight[1, 6] = 2.0, -1.0, -4.0, 4.0
    values = quantize(weight, form("int4")).values.astype(np.int8)
    assert (values[0, 3], values[0, 4]) == (-8, 4), "a negative scale: the largest number is hit"
    assert (values[1, 5], values[1, 6]) == (-8, 7), "the first of two, the other is cut"
    np.testing.assert_array_equal(quantize(weight, form("int4")).scales[:, 0], np.float16([-0.25, 0.5]))
    assert quantize(weight, form("int8")).values[1, 5:7].tolist() == [-127, 127]


def test_zeros_stay_zeros() -> None:
    for dtype in (*LIMITS, *UNSIGNED):
        quantized = quantize(np.zeros((3, 64), np.float32), form(dtype))
        assert not quantized.values.astype(np.int8).any()
        assert not quantized.scales.view(np.uint16).any(), "no negative zero"
        assert not dequantize(quantized).any()


def test_what_is_on_the_grid_is_kept() -> None:
    rng = np.random.default_rng(0)
    for dtype, (lowest, highest) in LIMITS.items():
        values = rng.integers(lowest, highest + 1, (4, 32))
        values[:, 0] = lowest
        weight = (values * 0.125).astype(np.float32)
        np.testing.assert_array_equal(dequantize(quantize(weight, form(dtype))), weight)


@pytest.mark.parametrize("source", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_rounded_as_its_float32(source: type) -> None:
    weight = np.random.default_rng(1).normal(size=(3, 64)).astype(source)
    for dtype in LIMITS:
        first, second = quantize(weight, form(dtype)), quantize(weight.astype(np.float32), form(dtype))
        np.testing.assert_array_equal(first.values, second.values)
        np.testing.assert_array_equal(first.scales, second.scales)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e30])
def test_what_has_no_scale_is_refused(wrong: float) -> None:
    weight = np.ones((2, 32), np.float32)
    weight[1, 7] = wrong
    for dtype in (*LIMITS, *UNSIGNED):
        with pytest.raises(DogeExportError, match=f"cannot be stored in {dtype}"):
            quantize(weight, form(dtype))


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_the_tensors_are_made_when_read_and_packed_low_nibble_first(dtype: str) -> None:
    weight = np.random.default_rng(2).normal(size=(3, 40)).astype(np.float32)
    values, scales = quantized_tensors(ir.tensor(weight), form(dtype), "w")
    expected = quantize(weight, form(dtype))
    assert (values.name, scales.name) == ("w.weight", "w.scale")
    assert list(values.shape.numpy()) == [3, 40]
    assert list(scales.shape.numpy()) == list(expected.scales.shape)
    assert scales.tobytes() == expected.scales.tobytes()
    if dtype == "int8":
        assert values.dtype == ir.DataType.INT8 and values.tobytes() == expected.values.tobytes()
        return
    assert values.dtype == ir.DataType.INT4 and values.nbytes == 60
    nibbles = expected.values.astype(np.int8).reshape(-1, 2) & 15
    assert values.tobytes() == (nibbles[:, 0] | nibbles[:, 1] << 4).astype(np.uint8).tobytes()


@pytest.mark.parametrize("dtype", UNSIGNED)
def test_zero_points_are_made_when_read_too(dtype: str) -> None:
    weight = np.random.default_rng(3).normal(size=(3, 40)).astype(np.float32)
    expected = quantize(weight, form(dtype))
    assert expected.zeros is not None
    for made in (None, expected):
        values, scales, zeros = quantized_tensors(ir.tensor(weight), form(dtype), "w", made)
        assert (values.name, scales.name, zeros.name) == ("w.weight", "w.scale", "w.zero")
        assert values.dtype == zeros.dtype == {"int8-asym": ir.DataType.UINT8}.get(dtype, ir.DataType.UINT4)
        assert list(zeros.shape.numpy()) == list(scales.shape.numpy()) == list(expected.scales.shape)
        assert (zeros.numpy() == expected.zeros).all() and (values.numpy() == expected.values).all()
