"""The rows of an embedding table in fewer bits are read by one node, TokenEmbedding."""

import onnx_ir as ir

from doge_export.graph.passes.outline import Outline, replace_by, tidy
from doge_export.graph.targets.lowered import TOKEN_EMBEDDING, TOKEN_EMBEDDING_ROLES

__all__ = ["lower_embedding"]


def lower_embedding(model: ir.Model) -> None:
    """Put a TokenEmbedding before the first layer, which is not lowered yet. A table in the dtype of the
    states stays a Gather."""
    graph = model.graph
    table = graph.initializers["model.embed_tokens.weight"]
    ((norm, _),) = graph.initializers["model.layers.0.input_layernorm.weight"].uses()
    states = norm.inputs[0]
    assert states is not None
    if table.dtype == states.dtype:
        return
    named = {graph.inputs[0]: "input_ids", table: "table"}
    if (scale := graph.initializers.get("model.embed_tokens.scale")) is not None:
        named[scale] = "table.scale"
    outline = Outline(named.get)
    copies = {"hidden_states": outline.copy(states)}
    body = outline.function(TOKEN_EMBEDDING, TOKEN_EMBEDDING_ROLES, copies, {}, graph.opset_imports[""])
    replace_by(outline.call(TOKEN_EMBEDDING, TOKEN_EMBEDDING_ROLES, {}), [states])
    model.functions[body.identifier()] = body
    tidy(model)
