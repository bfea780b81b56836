"""Build an ONNX function body from standard operators, in the line order of its torch implementation, with
repeatable names."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

__all__ = ["DOMAIN", "VERSION", "BodyBuilder", "name_in_body"]

#: The domain and version of this project's operators.
DOMAIN = "doge"
VERSION = 1


def name_in_body(node: ir.Node, number: int) -> None:
    """Name the results of a function body's node, shortly: a layer's body is in the file once for every
    mixture of types, and half of it was names. The node itself needs none."""
    node.name = ""
    for output in node.outputs:
        output.name = f"v{number}_{output.index()}" if len(node.outputs) > 1 else f"v{number}"


class BodyBuilder:
    """Collects nodes; `b.Add(x, y)` appends one and returns its value.

    `inputs` are the formal inputs in the order of the schema. An attribute of the operator is read
    with `attribute`, so that one body serves every node of the operator in a model.
    """

    def __init__(self, inputs: Sequence[str]) -> None:
        self.nodes: list[ir.Node] = []
        self._added = 0
        self.inputs = {name: ir.Value(name=name) for name in inputs}
        self._attributes: dict[str, ir.AttributeType] = {}

    def __getattr__(self, op_type: str) -> Any:
        if not op_type[:1].isupper():
            raise AttributeError(op_type)

        def emit(*inputs: ir.Value | None, outputs: int = 1, **attributes: Any) -> Any:
            attrs = [
                value if isinstance(value, ir.Attr) else ir.convenience.convert_attribute(name, value)
                for name, value in attributes.items()
            ]
            node = ir.Node("", op_type, inputs, attrs, num_outputs=outputs)
            self.add(node)
            return node.outputs[0] if outputs == 1 else tuple(node.outputs)

        return emit

    def add(self, node: ir.Node) -> None:
        """Append a node that is there, and name its results."""
        self.nodes.append(node)
        name_in_body(node, self._added)  # not by its place: a subgraph's nodes leave theirs
        self._added += 1

    def const(self, value: Any, dtype: Any = np.int64) -> ir.Value:
        """A constant tensor."""
        array = np.asarray(value, dtype=dtype)
        output: ir.Value = self.Constant(value=ir.tensor(array))
        return output

    def attribute(self, name: str, kind: ir.AttributeType, target: str) -> ir.Attr:
        """A reference to the operator's attribute `name`, to stand as attribute `target` of a node."""
        self._attributes[name] = kind
        return ir.RefAttr(target, name, kind)

    def int_attribute(self, name: str) -> ir.Value:
        """The operator's integer attribute `name` as a scalar int64 value."""
        value: ir.Value = self.Constant(value_int=self.attribute(name, ir.AttributeType.INT, "value_int"))
        return value

    def float_attribute(self, name: str) -> ir.Value:
        """The operator's float attribute `name` as a scalar float32 value."""
        value: ir.Value = self.Constant(
            value_float=self.attribute(name, ir.AttributeType.FLOAT, "value_float")
        )
        return value

    def branch(self, name: str, nodes: Sequence[ir.Node], output: ir.Value) -> ir.Graph:
        """A subgraph without inputs for If; `nodes` are taken out of the body."""
        for node in nodes:
            self.nodes.remove(node)
        return ir.Graph([], [output], nodes=nodes, name=name)

    def function(self, name: str, outputs: Mapping[str, ir.Value], opset: int) -> ir.Function:
        """The finished FunctionProto, with every attribute that was referred to declared."""
        for key, value in outputs.items():
            value.name = key
        graph = ir.Graph(
            list(self.inputs.values()),
            list(outputs.values()),
            nodes=self.nodes,
            opset_imports={"": opset},
            name=name,
        )
        attributes = [ir.Attr(key, kind, None) for key, kind in sorted(self._attributes.items())]
        return ir.Function(DOMAIN, name, "", graph=graph, attributes=attributes)
