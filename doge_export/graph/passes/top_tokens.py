"""A lowered graph for decoding: the best tokens of the last position in the place of all logits."""

import onnx_ir as ir

from doge_export.graph.operators import DOMAIN
from doge_export.graph.operators.function import BodyBuilder
from doge_export.graph.targets.lowered import LM_HEAD, TOP_TOKENS

__all__ = ["top_tokens"]


def top_tokens(model: ir.Model, count: int) -> None:
    """Put TopTokens in the place of LMHead, and its outputs `token_ids` and `token_logits` in that of
    `logits`: int64 and float32 [batch, count], best first, ties by the lower id as ONNX's TopK has it."""
    graph = model.graph
    (head,) = (node for node in graph if node.domain == DOMAIN and node.op_type == LM_HEAD)
    node = ir.Node(
        DOMAIN,
        TOP_TOKENS,
        head.inputs,
        [*head.attributes.values(), ir.AttrInt64("count", count)],
        num_outputs=2,
        name=(head.name or "").replace(LM_HEAD, TOP_TOKENS),
    )
    for output, name, dtype in zip(
        node.outputs, ("token_ids", "token_logits"), (ir.DataType.INT64, ir.DataType.FLOAT), strict=True
    ):
        output.name, output.type = name, ir.TensorType(dtype)
        output.shape = ir.Shape([graph.outputs[0].shape[0], count])  # type: ignore[index]
    graph.insert_after(head, node)
    graph.outputs[:1] = node.outputs
    graph.remove(head, safe=True)
    body = _body(model.functions.pop((DOMAIN, LM_HEAD, "")))
    model.functions[body.identifier()] = body


def _body(head: ir.Function) -> ir.Function:
    """Build the function: the head's body on the last position alone, and TopK after it."""
    b = BodyBuilder([value.name or "" for value in head.inputs])
    copies = dict(zip(head.inputs, b.inputs.values(), strict=True))
    hidden_states = head.inputs[0]
    copies[hidden_states] = b.Gather(copies[hidden_states], b.const(-1), axis=1)
    for node in head:
        inputs = [copies[value] for value in node.inputs if value is not None]
        copies[node.outputs[0]] = getattr(b, node.op_type)(*inputs, **node.attributes)
    logits = b.Cast(copies[head.outputs[0]], to=ir.DataType.FLOAT)
    count = b.Unsqueeze(b.int_attribute("count"), b.const([0]))
    values, ids = b.TopK(logits, count, axis=-1, outputs=2)
    for name, attribute in head.attributes.items():
        b.attribute(name, attribute.type, name)
    return b.function(TOP_TOKENS, {"token_ids": ids, "token_logits": values}, head.opset_imports[""])
