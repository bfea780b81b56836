"""What matrices are rounded from: the checkpoint's tensors, or the same model with AWQ's scales in them."""

from collections.abc import Callable, Mapping
from functools import cached_property

import numpy as np

from doge_export.weights import (
    HALF,
    Arrays,
    Float64,
    Formats,
    Matrices,
    Matrix,
    Method,
    Quantized,
    WeightFormat,
    dequantize,
    nearest,
    output_metrics,
    scale_channels,
)

__all__ = ["Basis"]


class Basis:
    """`weights`, a checkpoint's tensors by name, and `inputs`, weight's name -> mean of x x^T [k, k], from
    which `method` rounds."""

    def __init__(self, weights: Arrays, inputs: Matrices, method: Method) -> None:
        self.weights, self.method, self._inputs = weights, method, inputs
        self._rounded: dict[tuple[str, WeightFormat], Quantized] = {}

    def scaled(self, format_of: Callable[[str], WeightFormat]) -> "Basis":
        """With the scales that are best where each weight is rounded to `format_of` it, FULL: to nothing."""
        method = self.method.scaled
        assert method is not None
        weights = dict(self.weights)
        return Basis(weights, scale_channels(weights, self._inputs, format_of, method.round), method)

    def rounded(self, name: str, form: WeightFormat) -> Quantized:
        """The matrix rounded to `form`, computed once."""
        if (name, form) not in self._rounded:
            weight = self.weights[name].astype(np.float32)
            known = self._inputs.get(name), self._metrics.get(name)
            self._rounded[name, form] = self.method.round(weight, form, *known)
        return self._rounded[name, form]

    def quantized(self, types: Formats) -> dict[str, Quantized]:
        """What the matrices are rounded to that have one of these formats, and scales."""
        return {name: self.rounded(name, form) for name, form in types.items() if form.scaled}

    def changed(self, types: Formats, since: "Basis") -> dict[str, Matrix]:
        """The tensors that differ from `since`'s where some have these formats."""
        tensors = {
            name: weight.astype(np.float32)
            for name, weight in self.weights.items()
            if weight is not since.weights[name]
        }
        return tensors | {name: self._numbers(name, form) for name, form in types.items()}

    def squared_error(self, name: str, form: WeightFormat) -> float:
        """The squared error of the matrix' products, each input by its mean square, where it is rounded to
        nearest."""
        weight = self.weights[name].astype(np.float32)
        squares: Matrix = np.square(weight - nearest(weight, form))
        inputs = self._inputs.get(name)
        return float((squares if inputs is None else squares * np.diag(inputs)).sum(dtype=np.float64))

    def _numbers(self, name: str, form: WeightFormat) -> Matrix:
        return nearest(self.weights[name], HALF) if form == HALF else dequantize(self.rounded(name, form))

    @cached_property
    def _metrics(self) -> Mapping[str, Float64]:
        return output_metrics(self.weights, self._inputs)
