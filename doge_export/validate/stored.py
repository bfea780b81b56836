"""What a bundle stores of a rounded model, as numbers: weights, and the scales of rounded activations."""

__all__ = ["stored_activations", "stored_weights"]

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from doge_export.bundle import Bundle
from doge_export.quantize import Quantized, dequantize, folds, stays_float


def stored_weights(bundle: Bundle, folded: bool = False) -> dict[str, npt.NDArray[np.float32]]:
    """Name in the checkpoint -> float32 [n, k] of every weight of `model.onnx` that has scales, of a block or
    of a row, or is rounded without.

    `folded`: also of what scales of channels are folded into, a norm [k], and of what reads it unrounded.
    """
    tensors = {}
    for name, value in ir.load(bundle.model_path).graph.initializers.items():
        if value.const_value is not None:
            array = value.const_value.numpy()
            tensors[name.removesuffix(".T")] = array.T if name.endswith(".T") else array
    found = {}
    for name, values in tensors.items():
        scales = tensors.get(f"{name.removesuffix('.weight')}.scale") if name.endswith(".weight") else None
        if scales is not None and scales.ndim == 1:
            found[name] = values.astype(np.float32) * scales[:, None]
        elif scales is not None:
            found[name] = dequantize(Quantized(values, scales))
        elif stays_float(name):
            found[name] = values.astype(np.float32)
    for fold in folds(tensors) if folded else ():
        for name in (*fold.readers, fold.giver, f"{fold.giver.removesuffix('.weight')}.bias"):
            if name in tensors and name not in found:
                found[name] = tensors[name].astype(np.float32)
    return found


def stored_activations(bundle: Bundle) -> dict[str, float]:
    """Weight's name in the checkpoint -> the scale that the input of its product is rounded with, in int8."""
    found = {}
    for product in ir.load(bundle.model_path).graph:
        states = _producer(product.inputs[0], "DequantizeLinear") if product.op_type == "MatMul" else None
        if states is None or (rounded := _producer(states.inputs[0], "QuantizeLinear")) is None:
            continue
        matrix = product.inputs[1]
        while (node := _producer(matrix, "Transpose") or _producer(matrix, "DequantizeLinear")) is not None:
            matrix = node.inputs[0]
        scale = rounded.inputs[1]
        assert matrix is not None and matrix.name is not None
        assert scale is not None and scale.const_value is not None
        found[matrix.name.removesuffix(".T")] = float(scale.const_value.numpy())
    return found


def _producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type else None
