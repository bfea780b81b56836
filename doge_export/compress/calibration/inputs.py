"""The inputs of every matrix of a graph, window by window of a text that it reads."""

__all__ = ["MatrixInputs", "checkpoint_tensors", "first_call"]

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common

from doge_export.core.bundle import Bundle
from doge_export.graph.operators import OPERATORS
from doge_export.graph.passes.simplify import WEIGHTS
from doge_export.runtime.model_inputs import call_feed, empty_cache
from doge_export.validate.backends.function_bodies import plain_session
from doge_export.weights import Array, Matrix

_OURS = {operator.name for operator in OPERATORS}
_READERS = ("MatMul", "Gemm")


class MatrixInputs:
    """A bundle's graph on function bodies, whose products' inputs are outputs too.

    `inputs`: weight's name in the checkpoint -> name of what is multiplied with it. `gathered`: the weights
    that are also read row by row. `weights`: all by their names in the checkpoint.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        model = ir.load(bundle.model_path)
        common.InlinePass(lambda function: function.name not in _OURS)(model)
        inputs = _inputs(model.graph)
        for value in {value.name: value for value in inputs.values()}.values():
            value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), None
            if not value.is_graph_output():
                model.graph.outputs.append(value)
        self.inputs = {weight: value.name for weight, value in inputs.items() if value.name}
        self.gathered = {
            name
            for name in self.inputs
            if name in model.graph.initializers
            and any(node.op_type == "Gather" for node, _ in model.graph.initializers[name].uses())
        }
        self.weights = checkpoint_tensors(model)
        self._session = plain_session(model, bundle.path)

    def read(self, ids: npt.NDArray[np.int64]) -> Iterator[dict[str, Matrix]]:
        """For each row of ids [windows, length]: name of an input -> states float32 [length, k]."""
        names = sorted(set(self.inputs.values()))
        for row in ids:
            outputs = self._session.run(names, first_call(self._bundle, row[None]))
            yield {
                name: states.reshape(-1, states.shape[-1]).astype(np.float32, copy=False)
                for name, states in zip(names, outputs, strict=True)
            }


def _inputs(graph: ir.Graph) -> dict[str, ir.Value]:
    """Weight's name -> what is multiplied with it. A weight is read by way of a Transpose, or stored so."""
    inputs = {}
    for name, weight in graph.initializers.items():
        readers = [weight] if name.endswith(".weight.T") else []
        readers += [node.outputs[0] for node, _ in weight.uses() if node.op_type == "Transpose"]
        for matrix in readers:
            for product, index in matrix.uses():
                other = product.inputs[1 - index] if product.op_type in _READERS else None
                if other is not None and index == 1:
                    inputs[name.removesuffix(".T")] = other
    return inputs


def checkpoint_tensors(model: ir.Model) -> dict[str, Array]:
    """The tensors of the checkpoint that a graph in full precision is of, by their names there."""
    tensors = {
        name: value.const_value.numpy()
        for name, value in model.graph.initializers.items()
        if name.startswith(WEIGHTS) and value.const_value is not None
    }
    return {
        name.removesuffix(".T"): np.ascontiguousarray(tensor.T) if name.endswith(".T") else tensor
        for name, tensor in tensors.items()
    }


def first_call(bundle: Bundle, ids: npt.NDArray[np.int64]) -> dict[str, Array]:
    """What the graph is fed to read ids [rows, length] from an empty cache."""
    spec, positions = bundle.manifest.cache, np.tile(np.arange(ids.shape[1]), (len(ids), 1))
    rope_length = 0 if any(tensor.name == "rope_length" for tensor in bundle.manifest.inputs) else None
    feed = call_feed(spec, ids, np.ones_like(ids), positions, rope_length)
    return {**feed, **empty_cache(spec, len(ids), np.dtype(spec.dtype))}
