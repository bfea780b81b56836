"""Fold what is constant, merge what is equal, and leave nothing of the machine that exported."""

import logging

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

from doge_export.ops import DOMAIN

__all__ = ["simplify"]


def simplify(model: ir.Model) -> None:
    """Constant folding, common subexpressions, dead nodes; then repeatable names and no metadata.

    The exporter's metadata holds source lines and paths, which would make two machines' files differ.
    """
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    optimizer.optimize(model, inline=False, onnx_shape_inference=False, num_iterations=3)
    ir.passes.Sequential(
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.RemoveUnusedOpsetsPass(),
        common.ClearMetadataAndDocStringPass(),
    )(model)
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()  # the pass above leaves these
    interface = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    constants = 0
    for name, value in list(model.graph.initializers.items()):
        if "." not in name:  # not a parameter: a constant that was lifted
            del model.graph.initializers[name]
            value.name = f"constant_{constants}"
            model.graph.initializers[value.name] = value
            constants += 1
    for index, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{index}"
        if node.domain == DOMAIN:
            _drop_unused_outputs(node)
        for place, output in enumerate(node.outputs):
            if output.name not in interface:
                output.name = f"{node.op_type.lower()}_{index}_{place}"
                output.shape = None  # symbolic names of the exporter's own
    model.producer_name, model.producer_version = "doge_export", ""
    model.graph.name = "doge"


def _drop_unused_outputs(node: ir.Node) -> None:
    """Cut the optional outputs at the end that nobody reads: a kernel need not compute them."""
    count = len(node.outputs)
    while count and not node.outputs[count - 1].uses() and not node.outputs[count - 1].is_graph_output():
        count -= 1
    node.resize_outputs(count)
