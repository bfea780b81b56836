"""Make the graph show what goes from part to part: extra outputs, for validation only."""

import onnx_ir as ir

from doge_export.graph.operators import DOMAIN, OPERATORS
from doge_export.graph.targets.lowered import DECODER_LAYER, ROTARY_ANGLES

__all__ = ["expose_hidden"]

_ATTENTIONS = {operator.name: operator for operator in OPERATORS if "present_dt" in operator.output_names}


def expose_hidden(model: ir.Model) -> dict[str, str]:
    """Add the values between the parts of the model to the graph's outputs.

    Returns: part -> the name of its result. `embedding`, `N.attention` (after the first residual) and
    `N.feed_forward` (after the second) are [batch, sequence, hidden], `cos` and `sin` [batch, sequence,
    head_dim / 2], `N.dt` [batch, kv_heads, keys]. Lowered layers show what is inside after
    `expose_selection` only, which takes them apart. A part that cannot be told in the graph is left out.
    """
    graph = model.graph
    parts: dict[str, ir.Value] = {}
    (ids,) = (value for value in graph.inputs if value.name == "input_ids")
    reading = [node for node, _ in ids.uses() if node.op_type != "Shape"]
    if len(reading) == 1:
        parts["embedding"] = reading[0].outputs[0]
    nodes = list(graph)
    attentions = [node for node in nodes if node.domain == DOMAIN and node.op_type in _ATTENTIONS]
    if attentions:  # what they read, whoever made it
        names = _ATTENTIONS[attentions[0].op_type].input_names
        parts |= {name: _present(attentions[0].inputs[names.index(name)]) for name in ("cos", "sin")}
    else:
        for node in nodes:
            if node.domain == DOMAIN and node.op_type == ROTARY_ANGLES:
                parts["cos"], parts["sin"] = node.outputs[:2]
    layers = len(attentions) or sum(node.op_type == DECODER_LAYER for node in nodes)
    for layer in range(layers):
        inside = _read_by(graph, f"model.layers.{layer}.post_attention_layernorm.weight")
        if inside is not None and inside.op_type != DECODER_LAYER:
            parts[f"{layer}.attention"] = _present(inside.inputs[0])
        last = layer == layers - 1
        norm = "model.norm.weight" if last else f"model.layers.{layer + 1}.input_layernorm.weight"
        after = _read_by(graph, norm)
        if after is not None:
            parts[f"{layer}.feed_forward"] = _present(after.inputs[0])
    for layer, node in enumerate(attentions):
        index = _ATTENTIONS[node.op_type].output_names.index("present_dt")
        if len(node.outputs) > index and not node.outputs[index].is_graph_output():
            node.outputs[index].name = f"dt.{layer}"  # declared by expose_selection
            parts[f"{layer}.dt"] = node.outputs[index]
    kind = graph.outputs[0].type  # of the logits
    shown: dict[str, str] = {}
    for part, value in parts.items():
        if not value.is_graph_output():
            value.type = value.type or kind
            value.shape = value.shape or ir.Shape([None] * 3)
            graph.outputs.append(value)
        shown[part] = value.name or ""
    return shown


def _read_by(graph: ir.Graph, name: str) -> ir.Node | None:
    """Return the one node that reads a weight; None where none or several do."""
    weight = graph.initializers.get(name)
    uses = [] if weight is None else list(weight.uses())
    return uses[0][0] if len(uses) == 1 else None


def _present(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value
