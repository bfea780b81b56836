"""X^T X of the inputs X of every matrix, from a text that the graph reads."""

__all__ = ["feed_of", "hessians"]

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
from onnx_ir.passes import common

from doge_export.bundle import Bundle
from doge_export.ops import OPERATORS

_OURS = {operator.name for operator in OPERATORS}
_READERS = ("MatMul", "Gemm")


def hessians(
    bundle: Bundle, ids: npt.NDArray[np.int64], advance: Callable[[int], None] = lambda tokens: None
) -> dict[str, npt.NDArray[np.float32]]:
    """Weight's name -> mean of x x^T over all tokens of ids [windows, length], float32 [k, k], of each matrix
    that something is multiplied with; matrices that share an input share the array. The graph runs on
    function bodies. `advance` is told of tokens as they are read.
    """
    model = ir.load(bundle.model_path)
    common.InlinePass(lambda function: function.name not in _OURS)(model)
    inputs = _inputs(model.graph)
    values = {value.name: value for value in inputs.values()}
    for value in values.values():
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), None
        if not value.is_graph_output():
            model.graph.outputs.append(value)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(bundle.path))
    content = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    sums: dict[str, npt.NDArray[np.float32]] = {}
    names = [name for name in values if name]
    for row in ids:
        given = session.run(names, feed_of(bundle, row[None]))
        for name, states in zip(names, given, strict=True):
            flat = states.reshape(-1, states.shape[-1]).astype(np.float32)
            sums[name] = sums.get(name, 0) + flat.T @ flat
        advance(len(row))
    means = {name: total / np.float32(ids.size) for name, total in sums.items()}
    found = {weight: means[value.name] for weight, value in inputs.items() if value.name}
    for weight, mean in found.items():
        if any(node.op_type == "Gather" for node, _ in model.graph.initializers[weight].uses()):
            # A tied table is an embedding too, whose columns count alike: 0.3 to 3 times the mean was best.
            found[weight] = mean + np.eye(len(mean), dtype=np.float32) * np.diag(mean).mean()
    return found


def _inputs(graph: ir.Graph) -> dict[str, ir.Value]:
    """Weight's name -> what is multiplied with it."""
    found = {}
    for name, weight in graph.initializers.items():
        for reader, _ in weight.uses():
            if reader.op_type != "Transpose":
                continue
            for product, place in reader.outputs[0].uses():
                other = product.inputs[1 - place] if product.op_type in _READERS else None
                if other is not None and place == 1:
                    found[name] = other
    return found


def feed_of(bundle: Bundle, ids: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.generic]]:
    """One call from an empty cache."""
    spec, length = bundle.manifest.cache, ids.shape[1]
    slots = spec.max_length or 0
    feed: dict[str, npt.NDArray[np.generic]] = {"input_ids": ids, "position_ids": np.arange(length)[None]}
    kinds = {tensor.name: tensor for tensor in bundle.manifest.inputs}
    for name in spec.inputs:
        shape = [1, spec.kv_heads, slots, spec.head_dim][: len(kinds[name].shape)]
        feed[name] = np.zeros(shape, np.dtype(kinds[name].dtype))
        if name.endswith(".position"):
            feed[name] = feed[name] - 1
    mask = np.ones((1, length), np.int64)
    if spec.kind == "static":
        mask = np.pad(mask, ((0, 0), (0, slots - length)))
        feed["cache_position"] = np.zeros(1, np.int64)
    if "rope_length" in kinds:
        feed["rope_length"] = np.array(0, np.int64)
    feed["attention_mask"] = mask
    return feed
