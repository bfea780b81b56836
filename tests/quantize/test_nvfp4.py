"""Float4 with two levels of scales: the nearest number, exact products, and the same from a file's bytes."""

import itertools
from fractions import Fraction
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from doge_export.core.errors import DogeExportError
from doge_export.runtime.float4 import dequantize_float4
from doge_export.weights import FORMATS, METHODS, Quantized, dequantize, quantize, quantized_tensors

#: By the OCP specification of e2m1.
POSITIVE = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]

NVFP4 = FORMATS["nvfp4"]


def drawn(seed: int, rows: int = 5, blocks: int = 3, power: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    weight = rng.normal(0, 1, (rows, blocks, 16)) * np.exp(rng.normal(0, 2, (rows, blocks, 1)))
    return (weight.reshape(rows, -1) * 2.0**power).astype(np.float32)


def graph_of(weight: np.ndarray, made: Quantized | None = None) -> ir.Model:
    """A graph that gives what the tensors that are stored for `weight` are worth."""
    values, scales, whole = (
        ir.Value(name=each.name, type=ir.TensorType(each.dtype), shape=ir.Shape(each.shape), const_value=each)
        for each in quantized_tensors(ir.tensor(weight), NVFP4, "w", made)
    )
    steps = ir.Node("", "DequantizeLinear", [scales, whole])
    attributes = [ir.AttrInt64("axis", 1), ir.AttrInt64("block_size", 16)]
    matrix = ir.Node("", "DequantizeLinear", [values, steps.outputs[0]], attributes)
    result = ir.Node("", "Identity", [matrix.outputs[0]])
    result.outputs[0].name = "y"
    result.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    nodes, stored = [steps, matrix, result], [values, scales, whole]
    graph = ir.Graph([], [result.outputs[0]], nodes=nodes, initializers=stored, opset_imports={"": 24})
    return ir.Model(graph, ir_version=11)


@given(seed=st.integers(0, 2**32 - 1), power=st.integers(-40, 40))
def test_every_number_is_the_nearest(seed: int, power: int) -> None:
    """Of its block's sixteen, in exact arithmetic; and each product is a float32, not rounded to one."""
    weight = drawn(seed, power=power)
    made = quantize(weight, NVFP4)
    assert made.values.dtype == ml_dtypes.float4_e2m1fn and made.scales.dtype == ml_dtypes.float8_e4m3fn
    assert made.scales.shape == (5, 3) and made.global_scale is not None
    scales = made.scales.astype(np.float64) * float(made.global_scale)  # 12 bits: exact
    exact = made.values.astype(np.float64).reshape(5, 3, 16) * scales[..., None]
    np.testing.assert_array_equal(dequantize(made).astype(np.float64).reshape(exact.shape), exact)
    numbers = np.array([*POSITIVE, *(-number for number in POSITIVE)])
    least = np.abs(numbers * scales[..., None, None] - weight.reshape(5, 3, 16, 1)).min(-1)
    # The quotient that is rounded is a float32: it may miss a border by its own rounding.
    assert (np.abs(exact - weight.reshape(exact.shape)) <= least * (1 + 1e-6)).all()
    # The largest block has the largest scale, and every block's largest number is near the end of the range.
    assert made.scales.astype(np.float32).max() == 448
    assert (np.abs(made.values.astype(np.float32)).reshape(5, 3, 16).max(-1) >= 4).all()


def test_ties_go_to_even() -> None:
    """With a global scale of 1 and a block's of 1."""
    halfway = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]
    even = [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]
    weight = np.zeros((1, 32), np.float32)
    weight[0, 0] = 448 * 6
    weight[0, 16:23], weight[0, 23:30], weight[0, 31] = halfway, np.negative(halfway), 6
    made = quantize(weight, NVFP4)
    assert made.global_scale == 1 and made.scales.astype(np.float32).tolist() == [[448, 1]]
    assert made.values[0, 16:23].astype(np.float32).tolist() == even
    assert made.values[0, 23:30].astype(np.float32).tolist() == [-number for number in even]
    assert made.values[0, 31] == 6


def test_what_is_on_the_grid_is_kept() -> None:
    rng = np.random.default_rng(0)
    values = rng.choice(POSITIVE, (8, 4, 16)) * rng.choice([-1, 1], (8, 4, 16))
    values[..., 0] = 6
    scales = np.exp2(rng.integers(-6, 8, (8, 4, 1))) * rng.integers(8, 15, (8, 4, 1)) / 8
    scales[0, 0] = 448
    weight = (values * scales * 2.0**-12).reshape(8, 64).astype(np.float32)
    made = quantize(weight, NVFP4)
    assert made.global_scale == 2.0**-12
    np.testing.assert_array_equal(dequantize(made), weight)
    np.testing.assert_array_equal(dequantize(METHODS["search"].round(weight, NVFP4, None)), weight)


def test_zeros_and_what_is_nearly_zero() -> None:
    """A block whose scale would be 0 gets the smallest, and keeps what is larger than half its step."""
    assert not dequantize(quantize(np.zeros((3, 32), np.float32), NVFP4)).any()
    weight = np.zeros((1, 64), np.float32)
    weight[0, 0] = 448 * 6  # so that the global scale is 1, and the least of a block 2^-9
    weight[0, 32:34] = 6 * 2.0**-13, -(2.0**-11)  # scale 2^-13, of which e4m3 makes 0
    weight[0, 48] = 1e-30
    made = quantize(weight, NVFP4)
    assert made.scales.astype(np.float32).tolist() == [[448, 0, 2.0**-9, 2.0**-9]]
    assert dequantize(made)[0, 32:34].tolist() == [2.0**-10, 0], "0.375 of a step is 0.5, and 0.25 is 0"
    assert dequantize(made)[0, 48] == 0
    tiny = np.full((1, 16), 1e-42, np.float32)  # below what float32 has all its bits for
    assert np.isfinite(dequantize(quantize(tiny, NVFP4))).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_has_no_scale_is_refused(wrong: float) -> None:
    weight = np.ones((2, 32), np.float32)
    weight[1, 7] = wrong
    with pytest.raises(DogeExportError, match="cannot be stored in nvfp4"):
        quantize(weight, NVFP4)


def test_a_row_is_whole_blocks() -> None:
    assert NVFP4.block_of(48) == 16
    assert [NVFP4.block_of(width) for width in (8, 24, 684)] == [None] * 3


@given(seed=st.integers(0, 2**32 - 1), power=st.integers(-40, 40), now=st.booleans())
def test_the_file_says_the_same_to_all(seed: int, power: int, now: bool) -> None:
    """To ONNX's own reference, to what onnxruntime is given, and to `dequantize`, to the last bit."""
    weight = drawn(seed, power=power)
    made = quantize(weight, NVFP4)
    model = graph_of(weight, made if now else None)
    (expected,) = ReferenceEvaluator(ir.to_proto(model)).run(None, {})
    proto = ir.to_proto(model)
    ((name, numbers),) = dequantize_float4(proto, Path()).items()
    assert [node.op_type for node in proto.graph.node] == ["Identity"]
    assert [tensor.name for tensor in proto.graph.initializer] == [name]
    for found in (numbers, dequantize(made)):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_every_pair_of_bits(tmp_path: Path) -> None:
    """All numbers with all scales, read back from a file, against exact arithmetic."""
    codes = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn)
    scales = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)[:, None]
    whole = np.float32(2.0**-10 * 1.2265625)  # eight significant bits
    made = Quantized(np.tile(codes, (127, 1)), scales, None, whole)
    model = graph_of(np.zeros((127, 16), np.float32), made)
    ir.save(model, tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=256)
    proto = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    (numbers,) = dequantize_float4(proto, tmp_path).values()
    for (row, scale), (column, code) in itertools.product(enumerate(scales[:, 0]), enumerate(codes)):
        exact = Fraction(float(code)) * Fraction(float(scale)) * Fraction(float(whole))
        assert Fraction(float(numbers[row, column])) == exact
    assert np.signbit(numbers[3, 8]) and numbers[3, 8] == 0


def test_bytes() -> None:
    weight = drawn(1, rows=7, blocks=5)
    tensors = quantized_tensors(ir.tensor(weight), NVFP4, "w")
    assert [tensor.name for tensor in tensors] == ["w.weight", "w.scale", "w.global_scale"]
    assert [tensor.nbytes for tensor in tensors] == [7 * 80 // 2, 7 * 5, 4]
    types = [onnx.TensorProto.DataType.Name(int(tensor.dtype)) for tensor in tensors]
    assert types == ["FLOAT4E2M1", "FLOAT8E4M3FN", "FLOAT"]
    assert NVFP4.number.bits == 4 and NVFP4.scale_bits == 8
