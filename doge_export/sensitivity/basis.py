"""What matrices are rounded from: the checkpoint's tensors, or the same model with AWQ's scales in them."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from doge_export.quantize import (
    HALF,
    METHODS,
    Quantized,
    dequantize,
    nearest,
    output_metrics,
    scale_channels,
)

__all__ = ["Basis", "scaled_method"]

Inputs = Mapping[str, npt.NDArray[np.float32]]


def scaled_method(method: str) -> str | None:
    """The method that rounds as `method` does once AWQ's scales are folded in ("awq-gptq" of "gptq"); None
    where there is none."""
    for name, each in METHODS.items():
        alike = each.round is METHODS[method].round and each.tunes == METHODS[method].tunes
        if each.scales_channels and alike:
            return name
    return None


class Basis:
    """`weights`, a checkpoint's tensors by name, and `inputs`, weight's name -> mean of x x^T [k, k], from
    which `method` rounds."""

    def __init__(self, weights: Mapping[str, npt.NDArray[Any]], inputs: Inputs, method: str) -> None:
        self.weights, self.method, self._inputs = weights, method, inputs
        self._rounded: dict[tuple[str, str], Quantized] = {}

    def scaled(self, dtype_of: Callable[[str], str | None]) -> "Basis":
        """With the scales that are best where each weight is rounded to `dtype_of` it, None: to nothing."""
        method = scaled_method(self.method)
        assert method is not None
        weights = dict(self.weights)
        return Basis(weights, scale_channels(weights, self._inputs, dtype_of, METHODS[method].round), method)

    def rounded(self, name: str, dtype: str) -> Quantized:
        """Made once."""
        if (name, dtype) not in self._rounded:
            weight = self.weights[name].astype(np.float32)
            known = self._inputs.get(name), self._metrics.get(name)
            self._rounded[name, dtype] = METHODS[self.method].round(weight, dtype, *known)
        return self._rounded[name, dtype]

    def made(self, types: Mapping[str, str]) -> dict[str, Quantized]:
        """What the matrices are rounded to that have one of these types, name -> type, and scales."""
        scaled = {name: dtype for name, dtype in types.items() if dtype not in ("fp32", HALF)}
        return {name: self.rounded(name, dtype) for name, dtype in scaled.items()}

    def changed(self, types: Mapping[str, str], since: "Basis") -> dict[str, npt.NDArray[np.float32]]:
        """The tensors that differ from `since`'s where some have these types, name -> type."""
        found = {
            name: weight.astype(np.float32)
            for name, weight in self.weights.items()
            if weight is not since.weights[name]
        }
        return found | {name: self._numbers(name, dtype) for name, dtype in types.items()}

    def squared_error(self, name: str, dtype: str) -> float:
        """Of the matrix' products, each input by its mean square, where it is rounded to nearest."""
        weight = self.weights[name].astype(np.float32)
        squares = np.square(weight - nearest(weight, dtype))
        inputs = self._inputs.get(name)
        return float((squares if inputs is None else squares * np.diag(inputs)).sum(dtype=np.float64))

    def _numbers(self, name: str, dtype: str) -> npt.NDArray[np.float32]:
        return nearest(self.weights[name], HALF) if dtype == HALF else dequantize(self.rounded(name, dtype))

    @cached_property
    def _metrics(self) -> Mapping[str, npt.NDArray[np.float64]]:
        return output_metrics(self.weights, self._inputs)
