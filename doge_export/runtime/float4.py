"""Matrices of float4 as float32, for a runtime that has no kernels for them.

onnxruntime 1.32 knows the type, and no operator of its CPU provider takes it. So what the two
DequantizeLinear of such a matrix give is computed here, once, from the bytes in the file, and the graph gets
it as an initializer: a table of the sixteen numbers, times the block's scale, times the matrix's. The
product of the three is a float32 (doge_export.weights.rounding.round_to_nearest), so that nothing is rounded.
"""

__all__ = ["dequantize_float4"]

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

#: What the bits say, the sign first (OCP Microscaling Formats, e2m1).
_NUMBERS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def dequantize_float4(model: onnx.ModelProto, folder: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Take the DequantizeLinear that read float4 out of `model`, whose weights lie in `folder`, and what only
    they read. In their place are initializers that say they lie in a file.

    Returns: an initializer's name -> its numbers float32 [n, k], which a session is to be given beside the
    graph: inside it they would be copied, and a graph has 2 GB at most.
    """
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    dequantized: dict[str, npt.NDArray[np.float32]] = {}
    gone: list[onnx.NodeProto] = []
    for node in graph.node:
        values = tensors.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if values is None or values.data_type != TensorProto.FLOAT4E2M1:
            continue
        steps = makers[node.input[1]]
        scales, whole = (onnx.numpy_helper.to_array(tensors[name], str(folder)) for name in steps.input)
        dequantized[node.output[0]] = _numbers(_bytes(values, folder), scales, whole)
        gone += [node, steps]
    if not dequantized:
        return {}
    read = {name for node in gone for name in node.input}
    outputs = {node.output[0] for node in gone}
    nodes = [node for node in graph.node if node.output[0] not in outputs]
    kept = [tensor for tensor in graph.initializer if tensor.name not in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    for name, numbers in dequantized.items():
        location = {"location": "given", "offset": "0", "length": str(numbers.nbytes)}
        tensor = graph.initializer.add(name=name, data_type=TensorProto.FLOAT, dims=numbers.shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in location.items():
            tensor.external_data.add(key=key, value=value)
    return dequantized


def _numbers(
    packed: npt.NDArray[np.uint8], scales: npt.NDArray[np.generic], whole: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Two numbers a byte, the first in its low half."""
    halves = np.stack((packed & 15, packed >> 4), -1)
    blocks = _NUMBERS[halves].reshape(*scales.shape, -1)
    blocks *= scales.astype(np.float32)[..., None]
    blocks *= np.float32(whole)
    return blocks.reshape(len(scales), -1)


def _bytes(tensor: TensorProto, folder: Path) -> npt.NDArray[np.uint8]:
    if uses_external_data(tensor):
        copy = TensorProto()
        copy.CopyFrom(tensor)
        load_external_data_for_tensor(copy, str(folder))
        tensor = copy
    return np.frombuffer(tensor.raw_data, np.uint8)
