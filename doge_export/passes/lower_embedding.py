"""The rows of a quantized embedding table are read by one node, TokenEmbedding."""

import onnx_ir as ir

from doge_export.ops.lowered import TOKEN_EMBEDDING, TOKEN_EMBEDDING_ROLES
from doge_export.passes.outline import Outline, replace_by, tidy

__all__ = ["lower_embedding"]


def lower_embedding(model: ir.Model) -> None:
    """Put a TokenEmbedding before the first layer, which is not lowered yet. A float table stays a Gather."""
    graph = model.graph
    scale = graph.initializers.get("model.embed_tokens.scale")
    if scale is None:
        return
    named = {
        graph.inputs[0]: "input_ids",
        graph.initializers["model.embed_tokens.weight"]: "table",
        scale: "table.scale",
    }
    outline = Outline(named.get)
    ((norm, _),) = graph.initializers["model.layers.0.input_layernorm.weight"].uses()
    states = norm.inputs[0]
    assert states is not None
    copies = {"hidden_states": outline.copy(states)}
    body = outline.function(TOKEN_EMBEDDING, TOKEN_EMBEDDING_ROLES, copies, {}, graph.opset_imports[""])
    replace_by(outline.call(TOKEN_EMBEDDING, TOKEN_EMBEDDING_ROLES, {}), [states])
    model.functions[body.identifier()] = body
    tidy(model)
