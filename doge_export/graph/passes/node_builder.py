"""Builds new nodes before one that is in the graph."""

from typing import Any

import onnx_ir as ir

__all__ = ["Emitter"]


class Emitter:
    """Emits nodes of standard operators before `node`; each call gives the new one's only result, of
    `dtype`."""

    def __init__(self, node: ir.Node) -> None:
        assert node.graph is not None
        self.node, self.graph = node, node.graph

    def __call__(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        dtype: ir.DataType = ir.DataType.FLOAT,
        **attributes: Any,
    ) -> ir.Value:
        attrs = [ir.convenience.convert_attribute(key, value) for key, value in attributes.items()]
        new_node = ir.Node("", op_type, inputs, attrs)
        self.graph.insert_before(self.node, new_node)
        new_node.outputs[0].type = ir.TensorType(dtype)
        return new_node.outputs[0]
