"""Inline function bodies, for runtimes that should see what they compute as one graph."""

import onnx_ir as ir
from onnx_ir.passes import common

__all__ = ["inline_bodies"]


def inline_bodies(model: ir.Model) -> None:
    """Put every operator's body where its nodes are, and compute once what all layers compute alike, such as
    the causal mask.

    A node of a body gets the name of the node that it was in before its own:
    "DynamicMaskAttention_9/TopK_88".
    """
    functions = model.functions
    calls = [
        (node, [inner.op_type for inner in functions[node.op_identifier()]])
        for node in model.graph
        if node.op_identifier() in functions
    ]
    assert not any(inner.op_identifier() in functions for body in functions.values() for inner in body)
    before = set(model.graph)
    common.InlinePass()(model)
    new = iter([node for node in model.graph if node not in before])
    for call, op_types in calls:
        for index, op_type in enumerate(op_types):
            node = next(new)
            assert node.op_type == op_type, "the bodies stand in the order of their nodes"
            node.name = f"{call.name}/{op_type}_{index}"
            for output in node.outputs:
                if not output.is_graph_output():
                    output.name = f"{node.name}_{output.index()}"
    ir.passes.Sequential(common.CommonSubexpressionEliminationPass(), common.RemoveUnusedNodesPass())(model)
