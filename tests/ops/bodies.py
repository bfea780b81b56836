"""Run an operator's ONNX function body alone: a model of one node in plain onnxruntime."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch

from doge_export.graph.operators import DOMAIN, VERSION, BodyOptions, Operator
from doge_export.graph.passes import attach_bodies
from tests.ops.cases import as_numpy

__all__ = ["one_node_model", "run_body", "run_model"]

_RANKS = {
    "output": 3,
    "present_key": 4,
    "present_value": 4,
    "present_dt": 3,
    "present_position": 3,
    "keep": 4,
    "indices": 2,
    "weights": 2,
}
_TYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
    torch.int64: ir.DataType.INT64,
    torch.float64: ir.DataType.DOUBLE,
}


def one_node_model(
    operator: Operator,
    options: BodyOptions,
    inputs: dict[str, torch.Tensor | None],
    attributes: dict[str, Any],
    symbolic: bool = False,
    outputs: int | None = None,
) -> onnx.ModelProto:
    """A model whose graph is one node of `operator`, with the body of `options` beside it.

    `outputs`: how many of the operator's outputs the node has; None: all. `symbolic`: no shape is fixed.
    """
    names = operator.output_names[:outputs]
    present = [name for name in operator.input_names if inputs[name] is not None]
    last = operator.input_names.index(present[-1])
    values = {
        name: ir.Value(
            name=name,
            type=ir.TensorType(_TYPES[tensor.dtype]),
            shape=ir.Shape([None] * tensor.dim() if symbolic else list(tensor.shape)),
        )
        for name, tensor in inputs.items()
        if tensor is not None
    }
    node = ir.Node(
        DOMAIN,
        operator.name,
        [values.get(name) for name in operator.input_names[: last + 1]],
        [ir.convenience.convert_attribute(name, value) for name, value in attributes.items()],
        num_outputs=len(names),
    )
    kinds = {"T": options.dtype, "bool": ir.DataType.BOOL, "int64": ir.DataType.INT64}
    for output, port in zip(node.outputs, operator.outputs, strict=False):
        output.name, output.type = port.name, ir.TensorType(kinds[port.type])
        output.shape = ir.Shape([None] * _RANKS[port.name])
    graph = ir.Graph(
        list(values.values()),
        list(node.outputs),
        nodes=[node],
        opset_imports={"": options.opset, DOMAIN: VERSION},
        name=operator.name,
    )
    model = ir.Model(graph, ir_version=11)
    attach_bodies(model, options)
    return ir.to_proto(model)


def run_model(
    model: onnx.ModelProto,
    inputs: dict[str, torch.Tensor | None],
    optimised: bool = True,
    library: Path | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """Outputs by name. With `library` the node runs on its kernel, or this fails."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = 1
    if not optimised:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if library is not None:
        settings.register_custom_ops_library(str(library))
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    if library is not None:
        parts = session.get_provider_graph_assignment_info()
        assert [node.domain for part in parts for node in part.get_nodes()] == [DOMAIN]
    names = [output.name for output in session.get_outputs()]
    feed = {
        name: np.ascontiguousarray(as_numpy(tensor)) for name, tensor in inputs.items() if tensor is not None
    }
    return dict(zip(names, session.run(names, feed), strict=True))


def run_body(
    operator: Operator,
    options: BodyOptions,
    inputs: dict[str, torch.Tensor | None],
    attributes: dict[str, Any],
    **settings: Any,
) -> dict[str, npt.NDArray[Any]]:
    """Outputs by name."""
    return run_model(one_node_model(operator, options, inputs, attributes), inputs, **settings)
