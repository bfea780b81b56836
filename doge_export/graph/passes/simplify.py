"""Fold what is constant, merge what is equal, and leave nothing of the machine that exported."""

import contextlib
import logging
from collections.abc import Generator

import onnx_ir as ir
from onnx_ir.passes import common

from doge_export.graph.operators import DOMAIN

__all__ = ["WEIGHTS", "number", "simplify"]

#: How the names of weights begin.
WEIGHTS = ("model.", "lm_head.")


def simplify(model: ir.Model) -> None:
    """Fold constants, merge common subexpressions, remove dead nodes; then give repeatable names and drop
    metadata.

    Weights are no constants: they keep their names and shapes, even where two are equal. The exporter's
    metadata holds source lines and paths, which would make two machines' files differ.
    """
    from onnxscript import optimizer  # what lowers a traced graph needs none of it

    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with _unknown_weights(model.graph):
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
    for node in model.graph:
        if node.domain == DOMAIN:
            _drop_unused_outputs(node)
        for output in node.outputs:
            if not output.is_graph_output():
                output.shape = None  # symbolic names of the exporter's own
    number(model)
    model.producer_name, model.producer_version = "doge_export", ""
    model.graph.name = "doge"


def number(model: ir.Model) -> None:
    """Name nodes, their outputs and constants by their order in the graph."""
    initializers = model.graph.initializers
    constants = [value for name, value in initializers.items() if "." not in name]  # a weight has a path
    for value in constants:
        assert value.name is not None
        del initializers[value.name]
    for index, value in enumerate(constants):
        value.name = f"constant_{index}"
        initializers[value.name] = value
    for index, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{index}"
        for position, output in enumerate(node.outputs):
            if not output.is_graph_output():
                output.name = f"{node.op_type.lower()}_{index}_{position}"


@contextlib.contextmanager
def _unknown_weights(graph: ir.Graph) -> Generator[None]:
    """Make the weights inputs while this lasts: what a pass does not know it cannot fold or merge."""
    weights = {name: value for name, value in graph.initializers.items() if name.startswith(WEIGHTS)}
    tensors = {name: value.const_value for name, value in weights.items()}
    for name, value in weights.items():
        del graph.initializers[name]
        value.const_value = None
        graph.inputs.append(value)
    yield
    others = list(graph.initializers.values())
    graph.initializers.clear()
    for name, value in weights.items():
        graph.inputs.remove(value)
        value.const_value, value.name = tensors[name], name
        if value.uses():
            graph.initializers[name] = value
    for value in others:
        assert value.name is not None
        graph.initializers[value.name] = value


def _drop_unused_outputs(node: ir.Node) -> None:
    """Cut the optional outputs at the end that nobody reads: a kernel need not compute them."""
    count = len(node.outputs)
    while count and not node.outputs[count - 1].uses() and not node.outputs[count - 1].is_graph_output():
        count -= 1
    node.resize_outputs(count)
