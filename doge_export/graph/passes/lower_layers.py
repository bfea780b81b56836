"""Every decoder layer becomes one node, DecoderLayer, with the layer itself as its function body."""

from typing import Any

import onnx_ir as ir

from doge_export.graph.operators import DOMAIN, VERSION, bounded_mask_attention, dynamic_mask_attention
from doge_export.graph.passes.outline import ATTRIBUTE_KINDS, Outline, replace_by, tidy
from doge_export.graph.targets.lowered import DECODER_LAYER, LAYER_ATTRIBUTES, LAYER_ROLES

__all__ = ["lower_layers"]

_ATTENTIONS = {
    module.OPERATOR.name: module.OPERATOR for module in (dynamic_mask_attention, bounded_mask_attention)
}
#: What an attention reads that comes from outside -> its role. Weights say by their names what they are; the
#: bias alone may be a constant of zeros.
_ATTENTION_ROLES = {"dt_bias": "dt_proj.bias"} | {
    name: name
    for name in (
        *("attention_mask", "cos", "sin", "past_key", "past_value", "past_dt"),
        *("cache_position", "past_position", "position_ids"),
    )
}


def lower_layers(model: ir.Model, activation: str) -> None:
    """Put a DecoderLayer in the place of each layer. Layers that differ in their weights alone share one
    body; those that store a matrix in floats, and others do not, have another overload of it.

    `activation` is the config's `hidden_act`: the graph has it taken apart already.
    """
    graph = model.graph
    attentions = [node for node in graph if node.op_type in _ATTENTIONS]
    states = _states(graph, len(attentions))
    kinds = {name: ATTRIBUTE_KINDS[of] for name, of in LAYER_ATTRIBUTES.items()}
    bodies: list[ir.Function] = []
    for layer, attention in enumerate(attentions):
        outline = _outline(layer, attention, graph, states)
        layer_outputs = [states[layer + 1], *attention.outputs[1:]]
        # hidden_states, its first output, is an input's name, so it is called as the attention's is.
        names = _ATTENTIONS[attention.op_type].output_names
        copies = dict(zip(names, [outline.copy(value) for value in layer_outputs], strict=False))
        attributes = _attributes(outline, activation)
        function = outline.function(DECODER_LAYER, LAYER_ROLES, copies, kinds, graph.opset_imports[""])
        node = outline.call(DECODER_LAYER, LAYER_ROLES, attributes, len(layer_outputs))
        node.overload = _overload(bodies, function)
        replace_by(node, layer_outputs)
        states[layer + 1] = node.outputs[0]
    model.functions.update({body.identifier(): body for body in bodies})
    graph.opset_imports[DOMAIN] = VERSION
    tidy(model)


def _overload(bodies: list[ir.Function], function: ir.Function) -> str:
    """Return the overload of the body in `bodies` that `function` is a copy of; a new one is added to
    them."""
    for body in bodies:
        function.overload = body.overload
        if ir.to_proto(body) == ir.to_proto(function):
            return body.overload
    function.overload = str(len(bodies)) if bodies else ""
    bodies.append(function)
    return function.overload


def _states(graph: ir.Graph, layers: int) -> list[ir.Value]:
    """Return the hidden states before each layer and after the last one: the inputs of the RMSNorms there."""
    norms = [f"model.layers.{layer}.input_layernorm.weight" for layer in range(layers)]
    states = []
    for name in (*norms, "model.norm.weight"):
        ((norm, _),) = graph.initializers[name].uses()
        value = norm.inputs[0]
        assert value is not None
        states.append(value)
    return states


def _outline(layer: int, attention: ir.Node, graph: ir.Graph, states: list[ir.Value]) -> Outline:
    names = _ATTENTIONS[attention.op_type].input_names
    named = dict(zip(attention.inputs, map(_ATTENTION_ROLES.get, names), strict=False))
    named[states[layer]] = "hidden_states"
    prefix = f"model.layers.{layer}."

    def role_of(value: ir.Value) -> str | None:
        if named.get(value) is not None:
            return named[value]
        name = value.name or ""
        if not value.is_initializer() or not name.startswith(prefix):
            return None
        name = name.removeprefix(prefix).removesuffix(".weight")
        return name.removeprefix("self_attn.").removeprefix("mlp.")

    # The batch and the sequence are read off input_ids, for want of a reason to read them off anything else.
    return Outline(role_of, like={graph.inputs[0]: states[layer]})


def _attributes(outline: Outline, activation: str) -> dict[str, Any]:
    """Collect the layer's attributes from the nodes within it."""
    attributes: dict[str, Any] = {name: 0 for name in LAYER_ATTRIBUTES} | {"activation": activation}
    for node in outline.nodes:
        for name, attribute in node.attributes.items():
            if name in LAYER_ATTRIBUTES and (node.domain == DOMAIN or name == "epsilon"):
                attributes[name] = attribute.value
    return attributes
