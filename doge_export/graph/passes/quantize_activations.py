"""8-bit activations and weights in the standard form: QuantizeLinear and DequantizeLinear around products.

Each product's input goes through a pair with one symmetric scale (int8 or float8 e4m3, no zero point:
TensorRT takes no other), its matrix is stored in the same type with a float32 scale for each output channel
and read through DequantizeLinear. Runtimes make an 8-bit product of the three: onnxruntime's CPU provider, in
int8, MatMulIntegerToFloat, whose sums are exact, so that equal keys still tie. It does so
only where one product alone reads a QuantizeLinear, so each has its own, with a zero point of its own too, or
equal ones would be merged again. Of float8 it knows no product: it dequantizes the matrices at load
(doge_export.runtime.graph), and rounds the inputs in each step. Tables that are gathered from (embedding,
experts) have a scale a row, and their rows are float32 from there on.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from doge_export.graph.passes.node_builder import Emitter
from doge_export.weights import Array, Matrix, WeightFormat
from doge_export.weights.formats import Number
from doge_export.weights.rounding.round_to_nearest import nearest_numbers

__all__ = ["StaticRanges", "quantize_activations"]

_TABLES = ("embed_tokens.weight", "down_embed.weight", "up_embed.weight")


@dataclass(frozen=True)
class StaticRanges:
    """`ranges`: weight's name in the checkpoint -> the magnitude of its input that becomes the largest number
    of `form`, int8 or fp8: 127 or 448; larger ones are clipped. A matrix that is not there stays as it
    is, and so do the tables in `keep`. The rest says how they were found:
    doge_export.compress.calibration.static_ranges."""

    ranges: Mapping[str, float]
    form: WeightFormat
    calibration: str
    smooth: float | None = None
    keep: frozenset[str] = frozenset()


def _row_scales(weight: Matrix, number: Number) -> Matrix:
    """float32 [n] for `weight` [n, k]: the largest magnitude of a row becomes the type's largest number; a
    row of zeros has 1."""
    largest = np.abs(weight).max(1) / np.float32(number.divisor)
    result: Matrix = np.where(largest > 0, largest, np.float32(1))
    return result


def quantize_activations(model: ir.Model, static: StaticRanges, bare_integers: bool = True) -> None:
    """`model` has its matrices as MatMul reads them (passes/pretranspose.py): `<weight>.T`, or a table that
    is embedding and head through a Transpose. Without `bare_integers` a table is dequantized as a whole, and
    then gathered from; so it is in float8, which onnxruntime gathers nothing of."""
    graph, number = model.graph, static.form.number
    by_row = bare_integers and not number.floating
    for name, weight in list(graph.initializers.items()):
        transposed = name.endswith(".weight.T")
        plain = name.removesuffix(".T")
        is_table = name.endswith(_TABLES) and name not in static.keep
        if not (transposed or name.endswith(".weight")) or not (plain in static.ranges or is_table):
            continue
        values, scales = _store(graph, weight, 1 if transposed else 0, number)
        for node, index in tuple(weight.uses()):
            emit = _Emitter(node)
            if node.op_type == "Gather" and by_row:
                ir.convenience.replace_all_uses_with(node.outputs[0], emit.rows(values, scales))
                graph.remove(node, safe=True)
                continue
            matrix = emit("DequantizeLinear", values, scales, axis=1 if transposed else 0)
            node.replace_input_with(index, matrix)
            if node.op_type == "Gather":
                continue
            for product, at in [(node, index)] if node.op_type == "MatMul" else tuple(node.outputs[0].uses()):
                assert product.op_type == "MatMul" and at == 1, f"{name} is read by {product.op_type}"
                if plain in static.ranges:
                    _quantize_input(product, static.ranges[plain], number)


def _quantize_input(product: ir.Node, largest: float, number: Number) -> None:
    states = product.inputs[0]
    assert states is not None
    emit = _Emitter(product)
    scale = emit.constant(np.float32(largest / number.divisor if largest > 0 else 1.0))
    zero = emit.constant(np.zeros((), number.element))
    rounded = emit("QuantizeLinear", states, scale, zero, dtype=number.onnx)
    product.replace_input_with(0, emit("DequantizeLinear", rounded, scale, zero))


def _store(graph: ir.Graph, weight: ir.Value, axis: int, number: Number) -> tuple[ir.Value, ir.Value]:
    """Store values under the weight's name, and scales float32; `axis` is that of the output channels."""
    tensor, name = weight.const_value, weight.name
    assert tensor is not None and name is not None
    matrix = tensor.numpy().astype(np.float32)
    scales = _row_scales(matrix if axis == 0 else matrix.T, number)
    steps = scales[:, None] if axis == 0 else scales
    numbers = nearest_numbers(matrix / steps, number).astype(number.element)
    del graph.initializers[name]
    values = []
    for stored in (
        ir.Tensor(numbers, name=name),
        ir.Tensor(scales, name=name.removesuffix(".T").removesuffix(".weight") + ".scale"),
    ):
        value = ir.Value(
            name=stored.name, type=ir.TensorType(stored.dtype), shape=stored.shape, const_value=stored
        )
        graph.initializers.add(value)
        values.append(value)
    return values[0], values[1]


class _Emitter(Emitter):
    def constant(self, number: np.float32 | Array) -> ir.Value:
        """Add a constant as an initializer, which QuantizeLinear and DequantizeLinear want their scales to
        be."""
        tensor = ir.Tensor(np.asarray(number))
        name = f"quantizer_{sum(key.startswith('quantizer_') for key in self.graph.initializers)}"
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        self.graph.initializers.add(value)
        return value

    def rows(self, values: ir.Value, scales: ir.Value) -> ir.Value:
        """Emit the rows that the Gather reads. Not by DequantizeLinear, whose scale of a row would need
        blocks, which TensorRT has not for int8; nor of the whole table, which onnxruntime would do in every
        step."""
        ids = self.node.inputs[1]
        axis = self("Constant", dtype=ir.DataType.INT64, value=ir.tensor([-1]))
        integers = self("Gather", values, ids, dtype=ir.DataType.INT8, axis=0)
        steps = self("Unsqueeze", self("Gather", scales, ids, axis=0), axis)
        return self("Mul", self("Cast", integers, to=int(ir.DataType.FLOAT)), steps)
