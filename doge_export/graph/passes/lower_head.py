"""The final norm and the head become one node, LMHead."""

import onnx_ir as ir

from doge_export.graph.passes.outline import Outline, replace_by, tidy
from doge_export.graph.targets.lowered import LM_HEAD, LM_HEAD_ROLES

__all__ = ["lower_head"]


def lower_head(model: ir.Model) -> None:
    """Make `logits` the output of an LMHead that reads the last hidden states."""
    graph = model.graph
    logits = graph.outputs[0]
    ((norm, _),) = graph.initializers["model.norm.weight"].uses()
    named = {norm.inputs[0]: "hidden_states", norm.inputs[1]: "norm"}

    def role_of(value: ir.Value) -> str | None:
        name = value.name or ""
        if value in named or not value.is_initializer() or "." not in name:
            return named.get(value)
        return "lm_head.scale" if name.endswith(".scale") else "lm_head"

    outline = Outline(role_of)
    copies = {"logits": outline.copy(logits)}
    attributes = {"epsilon": norm.attributes["epsilon"].as_float()}
    kinds = {"epsilon": ir.AttributeType.FLOAT}
    body = outline.function(LM_HEAD, LM_HEAD_ROLES, copies, kinds, graph.opset_imports[""])
    replace_by(outline.call(LM_HEAD, LM_HEAD_ROLES, attributes), [logits])
    model.functions[body.identifier()] = body
    tidy(model)
