"""Store the large matrices in fewer bits with their scales, and zero points where they have some, and
dequantize them where they are read."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from doge_export.graph.passes.node_builder import Emitter
from doge_export.weights import (
    FULL,
    HALF,
    Matrix,
    Precision,
    Quantized,
    WeightFormat,
    dequantize,
    halved,
    quantize,
    quantized_tensors,
    stays_float,
    stored_format,
)

__all__ = ["quantize_weights"]


Round = Callable[[str, Matrix, WeightFormat], Quantized]


def quantize_weights(
    model: ir.Model,
    precision: Precision,
    tied: bool,
    round_with: Round | None = None,
    bare_integers: bool = True,
) -> None:
    """Replace each matrix that `precision` rounds by its values, under its own name, and its scales, under
    the name with `scale` in the place of `weight`; zero points have `zero` there, a scale of the whole matrix
    `global_scale`. Done when the file is written, one tensor at a time; or now, by `round_with`, which is
    given a weight's name, its values and the format. What the kernels read as floats gets its rounded numbers
    as floats, now. What is HALF has no scales, and goes through a Cast where it is read.

    The matrices are as the checkpoint has them, [outputs, inputs], read by Transpose and by Gather. Without
    `bare_integers` both read what DequantizeLinear makes of the whole matrix, with scales of the file's
    dtype; a scale a row is one [n] then. In two levels the scales are dequantized first, and the matrix is
    float32 until a Cast rounds it to the file's dtype.
    """
    graph = model.graph
    for name, weight in list(graph.initializers.items()):
        tensor = weight.const_value
        assert tensor is not None
        form = stored_format(name, tuple(map(int, tensor.shape.numpy())), precision, tied)
        if form == FULL:
            continue
        if form == HALF:
            _halve(graph, weight, tensor)
            continue
        rounded = None if round_with is None else round_with(name, tensor.numpy().astype(np.float32), form)
        if stays_float(name):
            numbers = dequantize(rounded or quantize(tensor.numpy(), form)).astype(tensor.numpy().dtype)
            weight.const_value = ir.Tensor(numbers, dtype=tensor.dtype, name=name)
            continue
        _quantize(graph, weight, tensor, form, rounded, bare_integers)


def _quantize(
    graph: ir.Graph,
    weight: ir.Value,
    tensor: ir.TensorProtocol,
    form: WeightFormat,
    rounded: Quantized | None,
    bare_integers: bool,
) -> None:
    name = weight.name
    assert name is not None
    block = form.block_of(int(tensor.shape.numpy()[1]))
    assert block is not None
    stored_tensors = quantized_tensors(tensor, form, name.removesuffix(".weight"), rounded)
    if not bare_integers and len(stored_tensors) == 2:
        stored_tensors = (stored_tensors[0], _scales_for_dequantize(stored_tensors[1], tensor.dtype))
    values, scales, *more = map(_value_of, stored_tensors)  # zero points, or a global scale
    for node, index in tuple(weight.uses()):
        reader = _Reader(node, block, tensor.dtype)
        if not bare_integers:
            node.replace_input_with(index, reader.dequantized(values, scales, *more))
        elif node.op_type == "Gather":
            _replace(node, reader.rows(values, scales, *more))
        else:
            assert node.op_type == "Transpose", f"{name} is read by {node.op_type}"
            node.replace_input_with(index, reader.matrix(values, scales, *more))
    # The values in the weight's place, the scales after all that is wider: so the file has no padding, and
    # still every number at a multiple of its size, for a kernel that reads it there.
    stored = list(graph.initializers.values())
    graph.initializers.clear()
    for value in stored:
        graph.initializers.add(values if value is weight else value)
    for value in (scales, *more):
        graph.initializers.add(value)


def _halve(graph: ir.Graph, weight: ir.Value, tensor: ir.TensorProtocol) -> None:
    """Store a weight in float16, with a Cast to the file's dtype where it is read: of a Gather's rows, of all
    else whole."""
    name, half = weight.name, ir.DataType.FLOAT16
    assert name is not None and weight.shape is not None
    if tensor.dtype == half:
        return
    kept = ir.LazyTensor(
        lambda: ir.Tensor(halved(tensor.numpy()), dtype=half, name=name),
        dtype=half,
        shape=weight.shape,
        name=name,
    )
    value = _value_of(kept)
    for node, index in tuple(weight.uses()):
        reader = _Reader(node, 1, tensor.dtype)
        if node.op_type == "Gather":
            _replace(node, reader.wide_rows(value))
        else:
            node.replace_input_with(index, reader.wide(value))
    # Behind all that is wider, as the scales are.
    del graph.initializers[name]
    graph.initializers.add(value)


def _value_of(stored: ir.TensorProtocol) -> ir.Value:
    """An initializer of the tensor."""
    dtype, shape = ir.TensorType(stored.dtype), ir.Shape(stored.shape.numpy())
    return ir.Value(name=stored.name, type=dtype, shape=shape, const_value=stored)


def _replace(node: ir.Node, value: ir.Value) -> None:
    """Give `value` to all that read `node`, and remove it."""
    assert node.graph is not None
    ir.convenience.replace_all_uses_with(node.outputs[0], value)
    node.graph.remove(node, safe=True)


def _scales_for_dequantize(scales: ir.TensorProtocol, dtype: ir.DataType) -> ir.TensorProtocol:
    """The scales in the file's dtype: [n, blocks] as they are, [n, 1] as [n]."""
    shape = [int(size) for size in scales.shape.numpy()]
    if shape[1] == 1:
        del shape[1]

    def make() -> ir.TensorProtocol:
        numbers = scales.numpy().reshape(shape).astype(dtype.numpy())
        return ir.Tensor(numbers, dtype=dtype, name=scales.name)

    return ir.LazyTensor(make, dtype=dtype, shape=ir.Shape(shape), name=scales.name)


class _Reader:
    """Emits, before `node`, what reads a quantized matrix in the file's `dtype`."""

    def __init__(self, node: ir.Node, block: int, dtype: ir.DataType) -> None:
        self._node, self._emit = node, Emitter(node)
        self._block, self._dtype = block, dtype

    def matrix(self, values: ir.Value, scales: ir.Value, zeros: ir.Value | None = None) -> ir.Value:
        """Emit the whole matrix, [n, k].

        Not by DequantizeLinear, which onnxruntime does not fold: it would compute the matrix in every step,
        and multiply by it as by no constant, with another rounding for one row than for many. Equal keys
        would get unequal weights then, and the tie rule break.
        """
        # The block is read off the scales, so that layers of other blocks have the same body.
        shape = self._emit("Shape", scales, dtype=ir.DataType.INT64)
        shape = self._emit("Concat", shape, self._shape(-1), dtype=ir.DataType.INT64, axis=0)
        blocks = self._emit("Reshape", self._cast(values, ir.DataType.FLOAT), shape)
        if zeros is not None:
            blocks = self._emit("Sub", blocks, self._by_block(zeros))
        matrix = self._emit("Reshape", self._emit("Mul", blocks, self._by_block(scales)), self._shape(0, -1))
        return self._cast(matrix, self._dtype)

    def _by_block(self, numbers: ir.Value) -> ir.Value:
        """[n, blocks] as [n, blocks, 1], float32."""
        return self._emit("Reshape", self._cast(numbers, ir.DataType.FLOAT), self._shape(0, -1, 1))

    def dequantized(
        self, values: ir.Value, scales: ir.Value, global_scale: ir.Value | None = None
    ) -> ir.Value:
        """Emit the whole matrix, [n, k], by DequantizeLinear: with a scale a block, or a row."""
        assert scales.shape is not None
        blocks = {"axis": 1, "block_size": self._block} if len(scales.shape) == 2 else {"axis": 0}
        if global_scale is None:
            return self._emit("DequantizeLinear", values, scales, dtype=self._dtype, **blocks)
        steps, wide = self._emit("DequantizeLinear", scales, global_scale), ir.DataType.FLOAT
        return self._cast(self._emit("DequantizeLinear", values, steps, dtype=wide, **blocks), self._dtype)

    def rows(self, values: ir.Value, scales: ir.Value, zeros: ir.Value | None = None) -> ir.Value:
        """Emit the rows that `node`, a Gather, reads. onnxruntime gathers no int4; it widens a constant at
        load."""
        integers = [self._gathered(self._wide(each)) for each in (values, zeros) if each is not None]
        scales = self._cast(self._gathered(scales), ir.DataType.FLOAT)
        rows = self._emit(
            "DequantizeLinear", integers[0], scales, *integers[1:], axis=-1, block_size=self._block
        )
        return self._cast(rows, self._dtype)

    def wide(self, values: ir.Value) -> ir.Value:
        """Emit the whole of a matrix without scales."""
        return self._cast(values, self._dtype)

    def wide_rows(self, values: ir.Value) -> ir.Value:
        """Emit the rows of a matrix without scales that `node`, a Gather, reads."""
        return self._cast(self._gathered(values), self._dtype)

    def _gathered(self, table: ir.Value) -> ir.Value:
        assert table.dtype is not None
        return self._emit("Gather", table, self._node.inputs[1], dtype=table.dtype, axis=0)

    def _wide(self, integers: ir.Value) -> ir.Value:
        wider = {ir.DataType.INT4: ir.DataType.INT8, ir.DataType.UINT4: ir.DataType.UINT8}
        assert integers.dtype is not None
        return self._cast(integers, wider.get(integers.dtype, integers.dtype))

    def _cast(self, value: ir.Value, to: ir.DataType) -> ir.Value:
        return value if value.dtype == to else self._emit("Cast", value, dtype=to, to=int(to))

    def _shape(self, *sizes: int) -> ir.Value:
        return self._emit("Constant", dtype=ir.DataType.INT64, value=ir.tensor(list(sizes)))
