"""Cut a part out of a graph: the nodes that compute some values become one function and a node of it."""

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from doge_export.graph.operators import DOMAIN, VERSION
from doge_export.graph.operators.function import name_in_body
from doge_export.graph.passes.simplify import number

__all__ = ["ATTRIBUTE_KINDS", "Outline", "replace_by", "tidy"]

#: Python's type of an attribute -> ONNX's.
ATTRIBUTE_KINDS = {
    int: ir.AttributeType.INT,
    float: ir.AttributeType.FLOAT,
    str: ir.AttributeType.STRING,
}


class Outline:
    """Copies of the nodes that compute some values, up to the values that have a role.

    `role_of` names what comes from outside; any other initializer that is met is copied into the body as
    a constant. Nodes stand in the order in which their results are needed, so that two parts of the same
    structure give the same body wherever their nodes stood. `like` gives a value for one of which only the
    shape's first axes are read, and which those nodes shall read instead.
    """

    def __init__(
        self,
        role_of: Callable[[ir.Value], str | None],
        like: Mapping[ir.Value, ir.Value] | None = None,
    ) -> None:
        self.nodes: list[ir.Node] = []
        self.outside: dict[str, ir.Value] = {}
        self._role_of, self._like = role_of, like or {}
        self._formal: dict[str, ir.Value] = {}
        self._copies: dict[ir.Value, ir.Value] = {}
        self._constants: dict[tuple[ir.DataType, tuple[int, ...], bytes], ir.Value] = {}

    def copy(self, value: ir.Value) -> ir.Value:
        """Return the value's copy in the body, made with all that it needs."""
        role = self._role_of(value)
        if role is not None:
            assert self.outside.setdefault(role, value) is value, f"two inputs are {role}"
            return self._formal.setdefault(role, ir.Value(name=role))
        if value not in self._copies:
            self._copy_producer(value)
        return self._copies[value]

    def _copy_producer(self, value: ir.Value) -> None:
        node = value.producer()
        if node is None:
            assert value.const_value is not None, f"{value.name} is an input without a role"
            self._copies[value] = self._constant(value.const_value)
            return
        if node.op_type == "Constant" and "value" in node.attributes:
            self._copies[value] = self._constant(node.attributes["value"].as_tensor())
            return
        inputs = [None if source is None else self.copy(self._source(node, source)) for source in node.inputs]
        copied = ir.Node(
            node.domain, node.op_type, inputs, node.attributes.values(), num_outputs=len(node.outputs)
        )
        self._add(copied)
        self._copies.update(zip(node.outputs, copied.outputs, strict=True))

    def _constant(self, tensor: ir.TensorProtocol) -> ir.Value:
        """Return the constant in the body; equal ones share a node."""
        key = tensor.dtype, tuple(map(int, tensor.shape.numpy())), tensor.tobytes()
        if key not in self._constants:
            node = ir.Node("", "Constant", [], [ir.AttrTensor("value", _bare(tensor))])
            self._add(node)
            self._constants[key] = node.outputs[0]
        return self._constants[key]

    def _source(self, node: ir.Node, source: ir.Value) -> ir.Value:
        if source not in self._like:
            return source
        assert node.op_type == "Shape", f"{node.op_type} reads more than the shape of {source.name}"
        return self._like[source]

    def _add(self, node: ir.Node) -> None:
        name_in_body(node, len(self.nodes))
        self.nodes.append(node)

    def function(
        self,
        name: str,
        roles: Sequence[str],
        outputs: Mapping[str, ir.Value],
        attributes: Mapping[str, ir.AttributeType],
        opset: int,
    ) -> ir.Function:
        """Return the body as a function of `name`: `outputs` are copies, by the names they shall have; inputs
        stand in the order of `roles`. A node's attribute named as one of `attributes` refers to the
        function's."""
        for node in self.nodes:
            for key, kind in attributes.items():
                if key in node.attributes and node.attributes[key].type == kind:
                    node.attributes[key] = ir.RefAttr(key, key, kind)
        for key, value in outputs.items():
            value.name = key
        graph = ir.Graph(
            [self._formal[role] for role in self.roles(roles)],
            list(outputs.values()),
            nodes=self.nodes,
            opset_imports={"": opset, DOMAIN: VERSION},
            name=name,
        )
        declared = {"inputs": ir.AttributeType.STRING, **attributes}
        attrs = [ir.Attr(key, kind, None) for key, kind in sorted(declared.items())]
        return ir.Function(DOMAIN, name, "", graph=graph, attributes=attrs)

    def roles(self, order: Sequence[str]) -> list[str]:
        """Return the roles that occur, in that order."""
        assert set(self.outside) <= set(order), f"unknown: {set(self.outside) - set(order)}"
        return [role for role in order if role in self.outside]

    def call(
        self, name: str, order: Sequence[str], attributes: Mapping[str, object], count: int = 1
    ) -> ir.Node:
        """Return a node that calls the function on the values outside; `count` outputs."""
        roles = self.roles(order)
        values = {"inputs": ",".join(roles), **attributes}
        attrs = [ir.convenience.convert_attribute(key, value) for key, value in values.items()]  # type: ignore[arg-type]
        return ir.Node(DOMAIN, name, [self.outside[role] for role in roles], attrs, num_outputs=count)


def replace_by(node: ir.Node, old: Sequence[ir.Value]) -> None:
    """Put `node` where the first of `old` is made; its outputs take their names and their readers."""
    maker = old[0].producer()
    assert maker is not None and maker.graph is not None
    maker.graph.insert_after(maker, node)
    for value, output in zip(old, node.outputs, strict=True):
        name = value.name
        output.type, output.shape = value.type, value.shape
        ir.convenience.replace_all_uses_with(value, output, replace_graph_outputs=True)
        value.name, output.name = f"{name}.replaced", name


def tidy(model: ir.Model) -> None:
    """Remove what nobody reads any more from the graph, but not from function bodies: there it is what
    `expose_selection` asks for. Then number the rest."""
    graph = model.graph
    for node in reversed(graph):
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]
    number(model)


def _bare(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Return the tensor without its name, which depends on what else is in the graph."""
    return ir.Tensor(tensor.numpy(), dtype=tensor.dtype)
