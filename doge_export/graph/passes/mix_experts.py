"""CDMoE's mixture of experts as one node, for a runtime that has a kernel for it."""

import onnx_ir as ir
from onnx_ir.passes import common

from doge_export.graph.operators.expert_routing import OPERATOR
from doge_export.triton.bodies import plugin_node

__all__ = ["mix_experts"]


def mix_experts(model: ir.Model, activation: str) -> None:
    """Put ExpertMix in the place of what an exported graph computes with ExpertRouting's indices and weights:
    rows of two tables are gathered, multiplied with the token, weighed and summed. `activation` is the
    model's `hidden_act`.

    Where the tables are stored in fewer bits it stays: the kernel reads them as they are multiplied.
    """
    for routing in [node for node in model.graph if node.op_type == OPERATOR.name]:
        indices, weights = routing.outputs
        rows = {node.inputs[0]: node for node, _ in indices.uses() if node.op_type == "Gather"}
        tables = [value for value in rows if value is not None and value.const_value is not None]
        if len(tables) < 2:
            continue
        down = next(table for table in tables if "down_embed" in str(table.name))
        up = next(table for table in tables if "up_embed" in str(table.name))
        tokens = _reader(rows[down].outputs[0], "MatMul").inputs[1]
        assert tokens is not None
        reshape = tokens.producer()
        assert reshape is not None and reshape.op_type == "Reshape", "the tokens are columns"
        hidden_states = reshape.inputs[0]
        assert hidden_states is not None
        mixed = _reader(_reader(rows[up].outputs[0], "MatMul").outputs[0], "Reshape")
        node = plugin_node(
            "ExpertMix",
            [hidden_states, indices, weights, down, up],
            {"activation": activation},
        )
        node.name, node.outputs[0].name = f"{mixed.name}_ExpertMix", f"{mixed.outputs[0].name}_mixed"
        model.graph.insert_after(mixed, node)
        ir.convenience.replace_all_uses_with(mixed.outputs[0], node.outputs[0])
    common.RemoveUnusedNodesPass()(model)


def _reader(value: ir.Value, op_type: str) -> ir.Node:
    """Return the one node that reads the value."""
    (node,) = (node for node, _ in value.uses())
    assert node.op_type == op_type, f"{value.name} is read by {node.op_type}"
    return node
