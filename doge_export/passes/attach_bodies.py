"""Give every operator of ours its body of standard operators, so that the file runs anywhere."""

import onnx_ir as ir

from doge_export.ops import DOMAIN, OPERATORS, BodyOptions

__all__ = ["attach_bodies"]


def attach_bodies(model: ir.Model, options: BodyOptions) -> None:
    """Add the model-local function of each operator that the graph uses."""
    used = {node.op_type for node in model.graph if node.domain == DOMAIN}
    for operator in OPERATORS:
        if operator.name in used:
            function = operator.body(options)
            model.functions[function.identifier()] = function
