"""A lowered graph with a cache in place and TopTokens becomes one node, which can go on by itself."""

from collections.abc import MutableSequence

import onnx_ir as ir

from doge_export.ops import DOMAIN, VERSION
from doge_export.ops.function import BodyBuilder
from doge_export.passes.outline import ATTRIBUTE_KINDS
from doge_export.targets.lowered import (
    DECODE_CALL_ROLES,
    DECODE_TOKENS,
    DECODER_LAYER,
    LAYER_ATTRIBUTES,
    ROTARY_ANGLES,
    ROTARY_ATTRIBUTES,
    TOP_TOKENS,
)

__all__ = ["decode_tokens"]

#: Every attribute of the node but `inputs` -> its type.
_ATTRIBUTES = {**LAYER_ATTRIBUTES, **dict.fromkeys(ROTARY_ATTRIBUTES, float), "count": int, "layers": int}


def decode_tokens(model: ir.Model) -> None:
    """Put a DecodeTokens in the place of all nodes.

    The inputs `past_key_values.N.key`, `.value`, `.dt` and, of a bounded cache, `.position` of all layers
    become `past_key_values.key` and so on, with the layer as their first axis, and so do the outputs
    `present.N.*`. A new input, `steps`, says how many tokens shall be made: the first after the tokens given,
    each other one after the best before it. `token_ids` and `token_logits` become [batch, steps, best]:
    `count` tokens of one step, and of several the best one each, since no one can choose among the others any
    more. All of it is one call of the kernel, and the runtime is asked once.
    """
    graph = model.graph
    nodes = list(graph)
    layers = [node for node in nodes if node.op_type == DECODER_LAYER]
    (rope,) = (node for node in nodes if node.op_type == ROTARY_ANGLES)
    (head,) = (node for node in nodes if node.op_type == TOP_TOKENS)
    (embedding,) = (node for node in nodes if node not in (*layers, rope, head))
    given = {value.name or "": value for value in graph.inputs}
    inputs = {role: given.get(role) for role in DECODE_CALL_ROLES}
    parts = [name.split(".")[2] for name in given if name.startswith("past_key_values.0.")]
    for part in parts:
        inputs[f"past_{part}"] = _joined(graph.inputs, "past_key_values", part, len(layers))
    steps = ir.Value(name="steps", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
    graph.inputs.append(steps)
    inputs["steps"] = steps
    inputs = {role: value for role, value in inputs.items() if value is not None}
    inputs |= _weights(embedding) | _weights(rope) | _weights(head)
    for number, layer in enumerate(layers):
        inputs |= {f"{number}.{role}": value for role, value in _weights(layer).items()}
    found = {name: attr for node in (rope, head, layers[0]) for name, attr in node.attributes.items()}
    found["layers"] = ir.AttrInt64("layers", len(layers))
    attributes = [ir.AttrString("inputs", ",".join(inputs)), *(found[name] for name in _ATTRIBUTES)]
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
    body = _body(list(inputs), parts, embedding, rope, layers, head, graph.opset_imports[""])
    graph.remove(nodes, safe=True)
    model.functions[body.identifier()] = body


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
    """One value in the place of those of all layers: where the first one was."""
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


def _body(
    inputs: list[str],
    parts: list[str],
    embedding: ir.Node,
    rope: ir.Node,
    layers: list[ir.Node],
    head: ir.Node,
    opset: int,
) -> ir.Function:
    """A Loop of the nodes that there were, on the cache that it hands on."""
    b = BodyBuilder(inputs)
    references = {name: b.attribute(name, ATTRIBUTE_KINDS[kind], name) for name, kind in _ATTRIBUTES.items()}
    b.attribute("inputs", ir.AttributeType.STRING, "inputs")
    # A bounded cache's mask is of the new tokens alone; each that is made is real.
    moving = "cache_position" if "cache_position" in inputs else "attention_mask"
    carried = ("input_ids", "position_ids", moving, *(f"past_{part}" for part in parts))
    inner = {name: ir.Value(name=f"loop_{name}") for name in ("iteration", "condition", *carried)}
    for name, kind in (("iteration", ir.DataType.INT64), ("condition", ir.DataType.BOOL)):
        inner[name].type, inner[name].shape = ir.TensorType(kind), ir.Shape([])
    values = b.inputs | inner
    # onnxruntime takes the types of a function's inputs from the nodes that read them; of what only nodes
    # inside a Loop read it believes that it cannot be int4. These nodes are for that alone.
    for role in inputs:
        if f"{role}.scale" in inputs:
            b.Shape(b.inputs[role])
    outside = len(b.nodes)

    def call(node: ir.Node, **own: ir.Value) -> list[ir.Value]:
        """The node again, inside, each weight by its name among `own` or as it is called everywhere."""
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

    (states,) = call(embedding)
    cos, sin = call(rope)
    present: dict[str, list[ir.Value]] = {part: [] for part in parts}
    for number, layer in enumerate(layers):
        own = {role: values[f"{number}.{role}"] for role in _weights(layer)}
        for part in parts:
            own[f"past_{part}"] = b.Gather(values[f"past_{part}"], b.const(number), axis=0)
        states, *made = call(layer, hidden_states=states, cos=cos, sin=sin, **own)
        for part, value in zip(parts, made, strict=True):
            present[part].append(b.Unsqueeze(value, b.const([0])))
    token_ids, token_logits = call(head, hidden_states=states)
    if moving == "cache_position":
        moved = b.Add(values["cache_position"], b.Shape(values["input_ids"], start=1, end=2))
    else:
        moved = b.Expand(
            b.const([[1]]), b.Concat(b.Shape(values["input_ids"], start=0, end=1), b.const([1]), axis=0)
        )
    results = [
        b.Identity(inner["condition"]),
        b.Gather(token_ids, b.const([0]), axis=1),
        b.Add(b.Gather(values["position_ids"], b.const([-1]), axis=1), b.const(1)),
        moved,
        *(b.Concat(*pieces, axis=0) for pieces in present.values()),
        b.Identity(token_ids),
        b.Identity(token_logits),
    ]
    for place, value in enumerate(results):
        value.name = f"loop_out_{place}"
    nodes = b.nodes[outside:]
    del b.nodes[outside:]
    loop = ir.Graph(list(inner.values()), results, nodes=nodes, name="step")
    always = b.const(True, bool)
    state = [b.inputs[name] for name in carried]
    looped = b.Loop(b.inputs["steps"], always, *state, body=loop, outputs=len(carried) + 2)
    *_, ids, logits = looped
    one = b.const(1)
    count = b.Where(b.Greater(b.inputs["steps"], one), one, b.int_attribute("count"))
    best = [b.const([0]), b.Unsqueeze(count, b.const([0])), b.const([2])]
    outputs = {
        "token_ids": b.Slice(b.Transpose(ids, perm=[1, 0, 2]), *best),
        "token_logits": b.Slice(b.Transpose(logits, perm=[1, 0, 2]), *best),
        **{f"present_{part}": b.Identity(value) for part, value in zip(parts, looped[3:-2], strict=True)},
    }
    function = b.function(DECODE_TOKENS, outputs, opset)
    function.opset_imports[DOMAIN] = VERSION
    return function
