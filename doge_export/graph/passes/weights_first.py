"""The order of a file's tensors: the weights of the model, then constants."""

import onnx_ir as ir

from doge_export.graph.passes.simplify import WEIGHTS

__all__ = ["weights_first"]


def weights_first(graph: ir.Graph) -> None:
    """Order the initializers: weights of the model first, each group as it was."""
    held = list(graph.initializers.values())
    graph.initializers.clear()
    for value in sorted(held, key=lambda value: not (value.name or "").startswith(WEIGHTS)):
        graph.initializers.add(value)
