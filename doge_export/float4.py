"""Matrices of float4 as float32, for a runtime that has no kernels for them.

onnxruntime 1.32 knows the type, and no operator of its CPU provider takes it. So what the two
DequantizeLinear of such a matrix give is computed here, once, from the bytes in the file, and the graph gets
it as an initializer: a table of the sixteen numbers, times the block's scale, times the matrix's. The
product of the three is a float32 (doge_export.quantize.round_to_nearest), so that nothing is rounded.
"""

__all__ = ["dequantize_float4"]

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

#: What the bits say, the sign first (OCP Microscaling Formats, e2m1).
_NUMBERS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def dequantize_float4(model: ir.Model) -> tuple[ir.Value, ...]:
    """Put initializers, float32 [n, k], in the place of the DequantizeLinear that read float4.

    Returns: these initializers.
    """
    found: list[ir.Value] = []
    graph = model.graph
    for value in list(graph.initializers.values()):
        if value.dtype != ir.DataType.FLOAT4E2M1:
            continue
        made: ir.Value | None = None
        beside: list[ir.Value] = []
        for node, _ in tuple(value.uses()):
            steps = node.inputs[1].producer() if node.inputs[1] is not None else None
            assert node.op_type == "DequantizeLinear" and steps is not None
            beside += [each for each in steps.inputs if each is not None]
            if made is None:
                numbers = _numbers(value, steps, node.attributes["block_size"].as_int())
                made = _initializer(f"{value.name}.float32", numbers)
                graph.register_initializer(made)
                found.append(made)
            ir.convenience.replace_all_uses_with(node.outputs[0], made)
            graph.remove(node, safe=True)
            if not steps.outputs[0].uses():
                graph.remove(steps, safe=True)
        for each in (value, *beside):
            graph.initializers.pop(str(each.name), None)
    return tuple(found)


def _numbers(values: ir.Value, steps: ir.Node, block: int) -> npt.NDArray[np.float32]:
    scales, whole = (_tensor(each).numpy() for each in steps.inputs)
    stored = _tensor(values)
    packed = np.frombuffer(stored.tobytes(), np.uint8)  # the first number in the low half
    halves = np.stack((packed & 15, packed >> 4), -1)
    blocks = _NUMBERS[halves].reshape(*scales.shape, block)
    blocks *= scales.astype(np.float32)[..., None]
    blocks *= np.float32(whole)
    return blocks.reshape(len(scales), -1)


def _tensor(value: ir.Value | None) -> ir.TensorProtocol:
    assert value is not None and value.const_value is not None
    return value.const_value


def _initializer(name: str, numbers: npt.NDArray[np.float32]) -> ir.Value:
    tensor = ir.Tensor(numbers, name=name)
    return ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
