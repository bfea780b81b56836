"""What a bundle stores of a rounded model, as numbers: weights, and the scales of rounded activations."""

__all__ = ["Stored", "stored_activations", "stored_weights"]

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from doge_export.core.bundle import Bundle
from doge_export.weights import (
    FULL,
    Array,
    Quantized,
    dequantize,
    folds,
    own_of,
    precision_of,
    stored_format,
    tunable,
)


class Stored:
    """The weights of the graph at `path`, by their names in the checkpoint, whatever the form they are in."""

    def __init__(self, path: Path) -> None:
        self._tensors = {
            name: value.const_value
            for name, value in ir.load(path).graph.initializers.items()
            if value.const_value is not None
        }

    @property
    def names(self) -> list[str]:
        """The names of all weights, and of some constants beside them."""
        return [name.removesuffix(".T") for name in self._tensors]

    def scales(self, name: str) -> Array | None:
        """The scales of blocks [n, blocks], or of rows [n]; None for a weight that has none."""
        return self._beside(name, "scale")

    def _beside(self, name: str, what: str) -> Array | None:
        """What is stored with a weight."""
        stem = name.removesuffix(".weight")
        tensor = self._tensors.get(f"{stem}.{what}") if name.endswith(".weight") else None
        return None if tensor is None else tensor.numpy()

    def numbers(self, name: str) -> npt.NDArray[np.float32] | None:
        """The numbers that the graph computes with; None where it has no such tensor."""
        if name in self._tensors:
            values = self._tensors[name].numpy()
        elif f"{name}.T" in self._tensors:  # as MatMul reads it
            values = self._tensors[f"{name}.T"].numpy().T
        else:
            return None
        scales = self.scales(name)
        if scales is None:
            return np.asarray(values, np.float32)
        if scales.ndim == 1:
            return np.asarray(values.astype(np.float32) * scales[:, None].astype(np.float32))
        whole = self._beside(name, "global_scale")
        global_scale = None if whole is None else np.float32(whole)
        return dequantize(Quantized(values, scales, self._beside(name, "zero"), global_scale))


def stored_weights(
    bundle: Bundle, folded: bool = False, tuned: bool = False
) -> dict[str, npt.NDArray[np.float32]]:
    """Name in the checkpoint -> float32 [n, k] of every weight of `model.onnx` that has scales, of a block or
    of a row, or is rounded without.

    `folded`: also of what scales of channels are folded into, a norm [k], and of what reads it unrounded.
    `tuned`: also of norms and residuals, which learned.
    """
    stored = Stored(bundle.model_path)
    precision, tied = precision_of(bundle), bundle.config.tie_word_embeddings
    names = [name for name in stored.names if stored.scales(name) is not None]
    # Without scales: float16, or floats that are rounded; only where they are named.
    for name in stored.names:
        if name in names or own_of(name, dict(precision.own), tied) in (None, FULL):
            continue
        numbers = stored.numbers(name)
        if numbers is not None and stored_format(name, numbers.shape, precision, tied) != FULL:
            names.append(name)
    for fold in folds(dict.fromkeys(stored.names)) if folded else ():
        names += [*fold.readers, fold.giver, f"{fold.giver.removesuffix('.weight')}.bias"]
    names += tunable(stored.names) if tuned else ()
    weights = {name: stored.numbers(name) for name in names}
    return {name: numbers for name, numbers in weights.items() if numbers is not None}


def stored_activations(bundle: Bundle) -> dict[str, float]:
    """Weight's name in the checkpoint -> the scale that the input of its product is rounded with."""
    scales = {}
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
        scales[matrix.name.removesuffix(".T")] = float(scale.const_value.numpy())
    return scales


def _producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type else None
