"""Give every operator of ours its body of standard operators, so that the file runs anywhere."""

import onnx_ir as ir

from doge_export.graph.operators import DOMAIN, OPERATORS, BodyOptions

__all__ = ["attach_bodies"]


def attach_bodies(model: ir.Model, options: BodyOptions) -> None:
    """Add the model-local function of each operator that the graph uses.

    A function declares as many outputs as its nodes have, since TensorRT's parser counts them; what
    it computes beyond them stays in it by name.
    """
    for operator in OPERATORS:
        nodes = [node for node in model.graph if node.domain == DOMAIN and node.op_type == operator.name]
        if nodes:
            function = operator.body(options)
            del function.outputs[max(len(node.outputs) for node in nodes) :]
            model.functions[function.identifier()] = function
