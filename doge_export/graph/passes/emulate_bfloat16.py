"""Emulate a bfloat16 graph in float32, for where there is no bfloat16 arithmetic: the same numbers, wider.

Every bfloat16 number is a float32 number. So a node that computes in float32 on such numbers and is
rounded to bfloat16 once, right after it, gives what a bfloat16 kernel gives that accumulates in float32
and rounds its result, which is what kernels do; only the order of their sums is their own. Operators
whose definition rounds in between (RMSNormalization, RotaryEmbedding) are taken apart at those places.
"""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

__all__ = ["emulate_bfloat16"]

_NARROW, _WIDE = ir.DataType.BFLOAT16, ir.DataType.FLOAT

#: Operators that only move, choose or repeat what they are given: rounded in, rounded out.
_MOVEMENT = frozenset(
    {
        *("Constant", "ConstantOfShape", "Identity", "If", "Where", "Max", "Min", "Neg", "Relu", "TopK"),
        *("Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND", "TensorScatter"),
        *("Compress", "Concat", "Split", "Slice", "Pad", "Tile", "Expand", "Trilu"),
        *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"),
    }
)
#: Operators that round between their steps, or carry a state, in a way that is not worked out here.
_UNKNOWN = frozenset(
    {
        *("BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization"),
        *("Attention", "GRU", "LSTM", "RNN", "Loop", "Scan"),
    }
)


def emulate_bfloat16(model: ir.Model) -> None:
    """Make `model` compute in float32 what it computes in bfloat16, inputs and outputs included.

    The model-local functions are inlined. A caller gives float32 inputs that hold bfloat16 numbers. The
    roundings are pairs of Cast: run the graph with its optimisations disabled.

    Raises:
        NotImplementedError: the graph holds an operator whose roundings are not known here.
    """
    common.InlinePass()(model)
    common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(model)
    graphs = list(model.graphs())
    for graph in graphs:
        for node in list(graph):
            _take_apart(graph, node)
    narrow = [value for graph in graphs for value in _values(graph) if value.dtype == _NARROW]
    for value in narrow:
        value.type = ir.TensorType(_WIDE)
        if value.const_value is not None:
            value.const_value = _widened(value.const_value)
    for value in narrow:
        maker = value.producer()
        if maker is not None:
            _widen_attributes(maker)
            if not _is_movement(maker):
                _round(value)


def _values(graph: ir.Graph) -> list[ir.Value]:
    """Return every value that the graph itself defines, all of known type.

    Raises:
        NotImplementedError: type inference could not tell a type.
    """
    produced = [output for node in graph for output in node.outputs if output.name]
    for value in produced:
        if value.dtype is None:
            node = value.producer()
            assert node is not None
            raise NotImplementedError(f"the type of {value.name}, made by {node.op_type}, is not known")
    return [*graph.inputs, *graph.initializers.values(), *produced]


def _widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Return the numbers in float32, made when they are read: weights need not all be in memory."""

    def make() -> ir.TensorProtocol:
        return ir.Tensor(tensor.numpy().astype(np.float32), name=tensor.name)

    return ir.LazyTensor(make, dtype=_WIDE, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name)


def _widen_attributes(node: ir.Node) -> None:
    """Widen constants in attributes, and change the type that a node other than Cast says it makes."""
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == _NARROW:
            node.attributes[name] = ir.AttrTensor(name, _widened(attribute.as_tensor()))
        elif name in ("dtype", "output_dtype") and attribute.as_int() == _NARROW:
            node.attributes[name] = ir.AttrInt64(name, int(_WIDE))


def _is_movement(node: ir.Node) -> bool:
    reduction = node.attributes.get("reduction")
    adds = reduction is not None and reduction.as_string() != "none"
    return node.domain == "" and node.op_type in _MOVEMENT and not adds


def _round(value: ir.Value) -> None:
    """Round `value` right where it is made. Whoever read it, by name or by edge, reads the rounded one."""
    node = value.producer()
    assert node is not None and node.graph is not None
    name = value.name
    if node.domain == "" and node.op_type == "Cast":
        value.type = ir.TensorType(_NARROW)
        chain, last = [], value
    else:
        chain = [_cast(value, _NARROW, f"{name}.bfloat16")]
        last = chain[0].outputs[0]
    chain.append(_cast(last, _WIDE, f"{name}.rounded"))
    rounded = chain[-1].outputs[0]
    _replace(value, rounded, keep=chain[0])
    node.graph.insert_after(node, chain)
    if rounded.is_graph_output():
        value.name, rounded.name = f"{name}.exact", name


def _cast(value: ir.Value, to: ir.DataType, name: str) -> ir.Node:
    node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(to))])
    (node.outputs[0].name, node.outputs[0].type) = (name, ir.TensorType(to))
    return node


def _replace(value: ir.Value, by: ir.Value, keep: ir.Node) -> None:
    """Let all users of `value` read `by`, but for `keep`, which makes it."""
    for user, index in value.uses():
        if user is not keep:
            user.replace_input_with(index, by)
    owner = value.graph
    if owner is not None and value.is_graph_output():
        owner.outputs[:] = [by if output is value else output for output in owner.outputs]


def _take_apart(graph: ir.Graph, node: ir.Node) -> None:
    """Put the steps of an operator that rounds between them in its place."""
    if not any(output.dtype == _NARROW for output in node.outputs):
        return
    if node.domain != "" or node.op_type in _UNKNOWN:
        raise NotImplementedError(f"where {node.domain or 'ONNX'}'s {node.op_type} rounds is not known")
    if node.op_type not in _STEPS:
        return
    steps = _Steps(node)
    result = _STEPS[node.op_type](steps, node)
    output = node.outputs[0]
    result.shape = output.shape
    graph.insert_before(node, steps.nodes)
    ir.convenience.replace_all_uses_with(output, result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    result.name = output.name


class _Steps:
    """Collects the bfloat16 nodes that stand for `node`."""

    def __init__(self, node: ir.Node) -> None:
        self.nodes: list[ir.Node] = []
        self.prefix = node.outputs[0].name

    def add(
        self, op_type: str, *inputs: ir.Value | None, dtype: ir.DataType = _NARROW, **attributes: object
    ) -> ir.Value:
        attrs = [ir.convenience.convert_attribute(name, value) for name, value in attributes.items()]  # type: ignore[arg-type]
        node = ir.Node("", op_type, inputs, attrs)
        (output,) = node.outputs
        output.name, output.type = f"{self.prefix}.{len(self.nodes)}", ir.TensorType(dtype)
        self.nodes.append(node)
        return output


def _rms_normalization(steps: _Steps, node: ir.Node) -> ir.Value:
    """Normalise in float32, round, multiply with the scale, round."""
    stash = node.attributes.get("stash_type")
    if stash is not None and stash.as_int() != _WIDE:
        raise NotImplementedError("an RMSNormalization that does not stash in float32")
    x, scale = node.inputs
    one = ir.tensor(np.ones(1, np.float32))
    ones = steps.add(
        "ConstantOfShape", steps.add("Shape", scale, dtype=ir.DataType.INT64), value=one, dtype=_WIDE
    )
    normalised = steps.add("RMSNormalization", x, ones)
    for name, attribute in node.attributes.items():
        steps.nodes[-1].attributes[name] = attribute
    return steps.add("Mul", normalised, scale)


def _rotary_embedding(steps: _Steps, node: ir.Node) -> ir.Value:
    """Compute first * cos - second * sin and second * cos + first * sin, each product and sum rounded."""
    inputs = [value for value in node.inputs if value is not None]
    if len(inputs) != 3 or any(attribute.as_int() for attribute in node.attributes.values()):
        raise NotImplementedError(
            "a RotaryEmbedding other than of [batch, heads, sequence, head_dim] as a whole"
        )
    x, cos, sin = inputs
    axis = steps.add("Constant", value=ir.tensor(np.array([1])), dtype=ir.DataType.INT64)
    cos, sin = steps.add("Unsqueeze", cos, axis), steps.add("Unsqueeze", sin, axis)
    halves = ir.Node(
        "", "Split", [x], [ir.AttrInt64("axis", -1), ir.AttrInt64("num_outputs", 2)], num_outputs=2
    )
    first, second = halves.outputs
    for index, half in enumerate(halves.outputs):
        half.name, half.type = f"{steps.prefix}.half.{index}", ir.TensorType(_NARROW)
    steps.nodes.append(halves)
    real = steps.add("Sub", steps.add("Mul", first, cos), steps.add("Mul", second, sin))
    imaginary = steps.add("Add", steps.add("Mul", second, cos), steps.add("Mul", first, sin))
    return steps.add("Concat", real, imaginary, axis=-1)


_STEPS: dict[str, Callable[[_Steps, ir.Node], ir.Value]] = {
    "RMSNormalization": _rms_normalization,
    "RotaryEmbedding": _rotary_embedding,
}
