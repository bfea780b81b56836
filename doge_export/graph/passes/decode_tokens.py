"""A lowered graph with a cache in place and TopTokens becomes one node, which can go on by itself."""

from collections.abc import MutableSequence, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from doge_export.graph.operators import DOMAIN, VERSION
from doge_export.graph.operators.function import BodyBuilder
from doge_export.graph.passes.outline import ATTRIBUTE_KINDS
from doge_export.graph.targets.lowered import (
    DECODE_CALL_ROLES,
    DECODE_TOKENS,
    DECODER_LAYER,
    DRAW_INPUTS,
    LAYER_ATTRIBUTES,
    RAGGED_ROLES,
    ROTARY_ANGLES,
    ROTARY_ATTRIBUTES,
    TOP_TOKENS,
)

__all__ = ["decode_tokens"]

#: Every attribute of the node but `inputs` -> its type.
_ATTRIBUTES = {**LAYER_ATTRIBUTES, **dict.fromkeys(ROTARY_ATTRIBUTES, float), "count": int, "layers": int}


@dataclass(frozen=True)
class _Nodes:
    """The nodes of a lowered graph, by what they compute."""

    embedding: ir.Node
    rope: ir.Node
    layers: list[ir.Node]
    head: ir.Node

    @classmethod
    def of(cls, graph: ir.Graph) -> "_Nodes":
        layers = [node for node in graph if node.op_type == DECODER_LAYER]
        (rope,) = (node for node in graph if node.op_type == ROTARY_ANGLES)
        (head,) = (node for node in graph if node.op_type == TOP_TOKENS)
        (embedding,) = (node for node in graph if node not in (*layers, rope, head))
        return cls(embedding, rope, layers, head)


def decode_tokens(model: ir.Model) -> None:
    """Put a DecodeTokens in the place of all nodes.

    The inputs `past_key_values.N.key`, `.value`, `.dt` and, of a bounded cache, `.position` of all layers
    become `past_key_values.key` and so on, with the layer as their first axis, and so do the outputs
    `present.N.*`. A new input, `steps`, says how many tokens shall be made: the first after the tokens given,
    each other one after the best before it. `token_ids` and `token_logits` become [batch, steps, best]:
    `count` tokens of one step, and of several the best one each, since no one can choose among the others any
    more. All of it is one call of the kernel, and the runtime is asked once.

    `RAGGED_ROLES` become inputs that nobody has to give.
    """
    graph = model.graph
    old_nodes, nodes = list(graph), _Nodes.of(graph)
    rope, layers, head = nodes.rope, nodes.layers, nodes.head
    graph_inputs = {value.name or "": value for value in graph.inputs}
    inputs = {role: graph_inputs.get(role) for role in DECODE_CALL_ROLES}
    parts = [name.split(".")[2] for name in graph_inputs if name.startswith("past_key_values.0.")]
    for part in parts:
        inputs[f"past_{part}"] = _joined(graph.inputs, "past_key_values", part, len(layers))
    steps = ir.Value(name="steps", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
    graph.inputs.append(steps)
    inputs["steps"] = steps
    inputs |= {role: _empty_by_default(graph, role) for role in RAGGED_ROLES}
    inputs |= _draw_inputs(graph)
    inputs = {role: value for role, value in inputs.items() if value is not None}
    inputs |= _weights(nodes.embedding) | _weights(rope) | _weights(head)
    for number, layer in enumerate(layers):
        inputs |= {f"{number}.{role}": value for role, value in _weights(layer).items()}
    node_attributes = {
        name: attr for node in (rope, head, layers[0]) for name, attr in node.attributes.items()
    }
    node_attributes["layers"] = ir.AttrInt64("layers", len(layers))
    attributes = [ir.AttrString("inputs", ",".join(inputs)), *(node_attributes[name] for name in _ATTRIBUTES)]
    node = ir.Node(
        DOMAIN,
        DECODE_TOKENS,
        list(inputs.values()),
        attributes,
        num_outputs=2 + len(parts),
        name=DECODE_TOKENS,
    )
    graph.append(node)
    for output, old in zip(node.outputs, list(graph.outputs)[:2], strict=False):
        assert old.shape is not None
        output.name, output.type = old.name, old.type
        output.shape = ir.Shape([old.shape[0], "steps", "best"])
    graph.outputs[:2] = node.outputs[:2]
    for part, output in zip(parts, node.outputs[2:], strict=True):
        _joined(graph.outputs, "present", part, len(layers), output)
    body = _body(list(inputs), parts, nodes, graph.opset_imports[""])
    graph.remove(old_nodes, safe=True)
    model.functions[body.identifier()] = body


def _empty_by_default(graph: ir.Graph, name: str) -> ir.Value:
    """Add an int64 input of one axis, which is empty where it is not given."""
    return _optional(graph, name, "INT64", (f"{name}_given",))


def _draw_inputs(graph: ir.Graph) -> dict[str, ir.Value]:
    """Add inputs of no rows, which a caller may leave out."""
    return {role: _optional(graph, role, dtype, shape) for role, (dtype, shape) in DRAW_INPUTS.items()}


def _optional(graph: ir.Graph, name: str, dtype: str, shape: Sequence[str | int]) -> ir.Value:
    """Add an input, whose sizes that have a name are 0 where it is not given."""
    kind = ir.DataType[dtype]
    empty = ir.tensor(
        np.zeros([size if isinstance(size, int) else 0 for size in shape], kind.numpy()), name=name
    )
    value = ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(shape), const_value=empty)
    graph.inputs.append(value)
    graph.register_initializer(value)
    return value


def _roles(node: ir.Node) -> list[str]:
    if node.domain != DOMAIN:  # a float table's Gather
        return ["table", "input_ids"]
    return node.attributes["inputs"].as_string().split(",")


def _weights(node: ir.Node) -> dict[str, ir.Value | None]:
    pairs = zip(_roles(node), node.inputs, strict=True)
    return {role: value for role, value in pairs if value is not None and value.is_initializer()}


def _joined(
    values: MutableSequence[ir.Value], start: str, part: str, layers: int, joined: ir.Value | None = None
) -> ir.Value:
    """Put one value in the place of those of all layers, where the first one was; returns it."""
    names = [f"{start}.{layer}.{part}" for layer in range(layers)]
    first = next(value for value in values if value.name == names[0])
    assert first.shape is not None
    joined = ir.Value() if joined is None else joined
    joined.name, joined.type = f"{start}.{part}", first.type
    joined.shape = ir.Shape([layers, *first.shape])
    values[:] = [
        joined if value is first else value
        for value in list(values)
        if value is first or value.name not in names
    ]
    return joined


def _body(inputs: list[str], parts: list[str], nodes: _Nodes, opset: int) -> ir.Function:
    """Build the function: a Loop of the nodes that there were, which hands on the cache."""
    b = BodyBuilder(inputs)
    references = {name: b.attribute(name, ATTRIBUTE_KINDS[kind], name) for name, kind in _ATTRIBUTES.items()}
    b.attribute("inputs", ir.AttributeType.STRING, "inputs")
    # A bounded cache's mask is of the new tokens alone; each that is made is real.
    moving = "cache_position" if "cache_position" in inputs else "attention_mask"
    carried = ("input_ids", "position_ids", moving, *(f"past_{part}" for part in parts))
    # onnxruntime takes the types of a function's inputs from the nodes that read them; of what only nodes
    # inside a Loop read it believes that it cannot be int4. These nodes are for that alone.
    for role in inputs:
        if f"{role}.scale" in inputs or role in RAGGED_ROLES:
            b.Shape(b.inputs[role])
    step = _step(b, references, carried, parts, nodes)
    always = b.const(True, bool)
    state = [b.inputs[name] for name in carried]
    # Only the kernel takes rows of several lengths: anybody else cannot bring offsets into this shape.
    nothing = b.Size(b.Reshape(b.inputs["offsets"], b.const([0]), allowzero=1))
    looped = b.Loop(b.Add(b.inputs["steps"], nothing), always, *state, body=step, outputs=len(carried) + 2)
    function = b.function(DECODE_TOKENS, _outputs(b, looped, parts), opset)
    function.opset_imports[DOMAIN] = VERSION
    return function


def _step(
    b: BodyBuilder, references: dict[str, ir.Attr], carried: tuple[str, ...], parts: list[str], nodes: _Nodes
) -> ir.Graph:
    """Build the body of the Loop, one call of the model: from the values `carried` by name to those of the
    next step, the best tokens and their logits."""
    inner = {name: ir.Value(name=f"loop_{name}") for name in ("iteration", "condition", *carried)}
    for name, kind in (("iteration", ir.DataType.INT64), ("condition", ir.DataType.BOOL)):
        inner[name].type, inner[name].shape = ir.TensorType(kind), ir.Shape([])
    values = b.inputs | inner
    outside = len(b.nodes)
    token_ids, token_logits, present = _forward(b, references, values, parts, nodes)
    moved = _moved(b, values, carried[2])
    results = [
        b.Identity(inner["condition"]),
        b.Gather(token_ids, b.const([0]), axis=1),
        b.Add(b.Gather(values["position_ids"], b.const([-1]), axis=1), b.const(1)),
        moved,
        *(b.Concat(*pieces, axis=0) for pieces in present.values()),
        b.Identity(token_ids),
        b.Identity(token_logits),
    ]
    for index, value in enumerate(results):
        value.name = f"loop_out_{index}"
    inside = b.nodes[outside:]
    del b.nodes[outside:]
    return ir.Graph(list(inner.values()), results, nodes=inside, name="step")


def _forward(
    b: BodyBuilder,
    references: dict[str, ir.Attr],
    values: dict[str, ir.Value],
    parts: list[str],
    nodes: _Nodes,
) -> tuple[ir.Value, ir.Value, dict[str, list[ir.Value]]]:
    """Copy the graph's nodes into the loop. Returns the tokens, their logits, and by part the new cache of
    each layer."""

    def call(node: ir.Node, **own: ir.Value) -> list[ir.Value]:
        """Copy a node; its inputs are those of `own` by role, else the values known by it."""
        attributes = [references.get(name, attribute) for name, attribute in node.attributes.items()]
        copied = ir.Node(
            node.domain,
            node.op_type,
            [own[role] if role in own else values[role] for role in _roles(node)],
            attributes,
            overload=node.overload,
            num_outputs=len(node.outputs),
        )
        b.add(copied)
        return list(copied.outputs)

    (states,) = call(nodes.embedding)
    cos, sin = call(nodes.rope)
    present: dict[str, list[ir.Value]] = {part: [] for part in parts}
    for number, layer in enumerate(nodes.layers):
        own = {role: values[f"{number}.{role}"] for role in _weights(layer)}
        for part in parts:
            own[f"past_{part}"] = b.Gather(values[f"past_{part}"], b.const(number), axis=0)
        states, *layer_cache = call(layer, hidden_states=states, cos=cos, sin=sin, **own)
        for part, value in zip(parts, layer_cache, strict=True):
            present[part].append(b.Unsqueeze(value, b.const([0])))
    token_ids, token_logits = call(nodes.head, hidden_states=states)
    return token_ids, token_logits, present


def _moved(b: BodyBuilder, values: dict[str, ir.Value], moving: str) -> ir.Value:
    """The next step's cache_position; of a bounded cache its attention_mask, one new token a row."""
    moved: ir.Value
    if moving == "cache_position":
        moved = b.Add(values["cache_position"], b.Shape(values["input_ids"], start=1, end=2))
    else:
        moved = b.Expand(
            b.const([[1]]), b.Concat(b.Shape(values["input_ids"], start=0, end=1), b.const([1]), axis=0)
        )
    return moved


def _outputs(b: BodyBuilder, looped: tuple[ir.Value, ...], parts: list[str]) -> dict[str, ir.Value]:
    """The function's outputs of what the Loop gave: of several steps the best token each, of one `count`."""
    *_, ids, logits = looped
    one = b.const(1)
    count = b.Where(b.Greater(b.inputs["steps"], one), one, b.int_attribute("count"))
    best = [b.const([0]), b.Unsqueeze(count, b.const([0])), b.const([2])]
    return {
        "token_ids": b.Slice(b.Transpose(ids, perm=[1, 0, 2]), *best),
        "token_logits": b.Slice(b.Transpose(logits, perm=[1, 0, 2]), *best),
        **{f"present_{part}": b.Identity(value) for part, value in zip(parts, looped[3:-2], strict=True)},
    }
