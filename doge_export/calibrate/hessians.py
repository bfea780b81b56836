"""X^T X of the inputs X of every matrix, from a text that the graph reads."""

__all__ = ["first_call", "hessians"]

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common

from doge_export.bundle import Bundle
from doge_export.ops import OPERATORS
from doge_export.runtime.feeds import call_feed, empty_cache
from doge_export.validate.candidate import plain_session

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
    session = plain_session(model, bundle.path)
    sums: dict[str, npt.NDArray[np.float32]] = {}
    names = [name for name in values if name]
    for row in ids:
        given = session.run(names, first_call(bundle, row[None]))
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


def first_call(bundle: Bundle, ids: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
    """What the graph is fed to read ids [rows, length] from an empty cache."""
    spec, positions = bundle.manifest.cache, np.tile(np.arange(ids.shape[1]), (len(ids), 1))
    rope_length = 0 if any(tensor.name == "rope_length" for tensor in bundle.manifest.inputs) else None
    feed = call_feed(spec, ids, np.ones_like(ids), positions, rope_length)
    return {**feed, **empty_cache(spec, len(ids), np.dtype(spec.dtype))}
