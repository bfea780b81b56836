"""Modules with random weights, lowered as an export lowers a checkpoint."""

import onnx_ir as ir
from onnx_ir.tensor_adapters import TorchTensor

from doge_export.graph.lower import GraphFile, Lowering, lower
from doge_export.graph.targets import Target
from doge_export.model import DogeForExport
from doge_export.model.trace import trace
from doge_export.weights import PRECISIONS, Precision

__all__ = ["lowered", "tensors"]


def tensors(model: DogeForExport) -> dict[str, ir.TensorProtocol]:
    """The weights of a module, as `lower` takes them."""
    return {name: TorchTensor(parameter.detach(), name) for name, parameter in model.named_parameters()}


def lowered(
    model: DogeForExport,
    target: Target,
    routing: str = "reference",
    slots: int | None = None,
    precision: Precision = PRECISIONS["fp32"],
) -> GraphFile:
    """The graph of `model` for `target`."""
    weights = tensors(model)
    dtype = str(model.model.norm.weight.dtype).removeprefix("torch.")
    canonical = trace(model.config, weights, dtype, routing, model.kv_cache, slots)
    return lower(canonical, model.config, weights, Lowering(target, precision))
