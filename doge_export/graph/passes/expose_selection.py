"""Make the graph say which keys and experts it chose: extra outputs, for validation only."""

import onnx_ir as ir
from onnx_ir.passes import common

from doge_export.graph.operators import DOMAIN, OPERATORS
from doge_export.graph.targets.lowered import DECODER_LAYER

__all__ = ["expose_selection"]

_CHOOSING = {operator.name for operator in OPERATORS}


def expose_selection(model: ir.Model) -> tuple[list[str], list[str]]:
    """Add each layer's `keep` mask and expert `indices` to the graph's outputs.

    Returns the names of the key masks (bool [batch, kv_heads, sequence, keys]) and of the expert
    indices (int64 [batch * sequence, num_experts_per_tok]), layer by layer. Lowered layers are taken
    apart for it.
    """
    common.InlinePass(lambda function: function.name == DECODER_LAYER)(model)
    for function in model.functions.values():
        if function.name in _CHOOSING:
            _declare(function, "keep")
    masks: list[str] = []
    experts: list[str] = []
    for node in model.graph:
        if node.domain != DOMAIN or node.op_type not in _CHOOSING:
            continue
        operator = next(operator for operator in OPERATORS if operator.name == node.op_type)
        if "keep" in operator.output_names:
            before, last = len(node.outputs), operator.output_names.index("keep")
            node.resize_outputs(last + 1)
            for index in range(before, last):
                node.outputs[index].name = f"unread.{len(masks)}.{index}"
            output, names, kind, kept = node.outputs[last], masks, ir.DataType.BOOL, 4
        else:
            output, names, kind, kept = node.outputs[0], experts, ir.DataType.INT64, 2
        output.name = f"{'keep' if kept == 4 else 'experts'}.{len(names)}"
        output.type, output.shape = ir.TensorType(kind), ir.Shape([None] * kept)
        names.append(output.name)
        model.graph.outputs.append(output)
    return masks, experts


def _declare(function: ir.Function, name: str) -> None:
    """Make the values up to `name`, which the body computes, its formal outputs."""
    operator = next(operator for operator in OPERATORS if operator.name == function.name)
    if name not in operator.output_names:
        return
    values = {output.name: output for node in function for output in node.outputs}
    for missing in operator.output_names[len(function.outputs) : operator.output_names.index(name) + 1]:
        function.outputs.append(values[missing])
