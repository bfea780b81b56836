"""The angles of the rotary embedding are computed by one node, RotaryAngles."""

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from doge_export.graph.operators import bounded_mask_attention, dynamic_mask_attention
from doge_export.graph.passes.outline import Outline, replace_by, tidy
from doge_export.graph.targets.lowered import ROTARY_ANGLES, ROTARY_ANGLES_ROLES

__all__ = ["lower_rope"]

_PREFIX = "rotary_embedding."


def lower_rope(model: ir.Model, attributes: Mapping[str, Any]) -> None:
    """Put a RotaryAngles in the place of what makes cos and sin of position_ids; the layers come after it.

    `attributes` are the operator's: a graph has them taken apart already.
    """
    graph = model.graph
    operators = {
        module.OPERATOR.name: module.OPERATOR for module in (dynamic_mask_attention, bounded_mask_attention)
    }
    attention = next(node for node in graph if node.op_type in operators)
    names = operators[attention.op_type].input_names
    angles = [attention.inputs[names.index(name)] for name in ("cos", "sin")]
    read = ("position_ids", "rope_length")
    graph_inputs = {value: value.name for value in graph.inputs if value.name in read}

    def role_of(value: ir.Value) -> str | None:
        if value in graph_inputs:
            return graph_inputs[value]
        name = value.name or ""
        return name.removeprefix(_PREFIX) if value.is_initializer() and name.startswith(_PREFIX) else None

    outline = Outline(role_of)
    copies = {name: outline.copy(value) for name, value in zip(("cos", "sin"), angles, strict=True) if value}
    declared = {name: ir.AttributeType.FLOAT for name in attributes}
    body = outline.function(ROTARY_ANGLES, ROTARY_ANGLES_ROLES, copies, declared, graph.opset_imports[""])
    node = outline.call(ROTARY_ANGLES, ROTARY_ANGLES_ROLES, attributes, 2)
    replace_by(node, [value for value in angles if value is not None])
    model.functions[body.identifier()] = body
    tidy(model)
