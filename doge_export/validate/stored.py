"""The rounded weights of a bundle, as numbers."""

__all__ = ["stored_weights"]

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from doge_export.bundle import Bundle
from doge_export.quantize import Quantized, dequantize, stays_float


def stored_weights(bundle: Bundle) -> dict[str, npt.NDArray[np.float32]]:
    """Name -> float32 [n, k] of every weight of `model.onnx` that has scales, or is rounded without."""
    tensors = {
        name: value.const_value
        for name, value in ir.load(bundle.model_path).graph.initializers.items()
        if value.const_value is not None
    }
    found = {}
    for name, values in tensors.items():
        scales = tensors.get(f"{name.removesuffix('.weight')}.scale") if name.endswith(".weight") else None
        if scales is not None:
            found[name] = dequantize(Quantized(values.numpy(), scales.numpy()))
        elif stays_float(name):
            found[name] = values.numpy().astype(np.float32)
    return found
