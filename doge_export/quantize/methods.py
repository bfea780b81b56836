"""How `quantize --scheme` rounds: one row a method, and the grammar of a scheme."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from doge_export.errors import DogeExportError
from doge_export.quantize.gptq import gptq
from doge_export.quantize.hqq import hqq
from doge_export.quantize.precisions import PRECISIONS, Precision
from doge_export.quantize.round_to_nearest import Quantized, quantize
from doge_export.quantize.scale_search import search

__all__ = ["METHODS", "Method", "parse_scheme", "split_setting"]

Hessian = npt.NDArray[np.float32]
Outputs = npt.NDArray[np.float64] | None


class Round(Protocol):
    """Takes a matrix [n, k], its type, the mean of x x^T [k, k] of what it is multiplied with, or None where
    nothing is known of that, and the metric [n, n] of what comes out (doge_export.quantize.selection)."""

    def __call__(
        self,
        weight: npt.NDArray[np.float32],
        dtype: str,
        hessian: Hessian | None,
        outputs: Outputs = None,
        /,
    ) -> Quantized: ...


@dataclass(frozen=True)
class Method:
    """`round` is how a matrix is rounded. `needs_text`: without a calibration text there is no point.
    `scales_channels`: AWQ's scales are folded in first, so that norms and up_proj are others too. `even`: it
    knows numbers at even distances only. `tunes`: scales and norms learn from the full model at the end
    (doge_export.tune)."""

    round: Round
    needs_text: bool = False
    scales_channels: bool = False
    even: bool = False
    tunes: bool = False

    @property
    def of_matrices(self) -> bool:
        """Whether one matrix may be rounded so, and others otherwise."""
        return not (self.scales_channels or self.tunes)

    def suits(self, precision: Precision) -> bool:
        """Whether it can make that precision; a static one is rounded to nearest alone."""
        return self is METHODS["nearest"] or (not precision.static and self.knows(precision))

    def knows(self, precision: Precision) -> bool:
        """Whether it knows the distances of that precision's numbers."""
        return not (precision.floating and self.even)


def _nearest(
    weight: npt.NDArray[np.float32], dtype: str, hessian: Hessian | None, outputs: Outputs = None
) -> Quantized:
    return quantize(weight, dtype)


def _hqq(
    weight: npt.NDArray[np.float32], dtype: str, hessian: Hessian | None, outputs: Outputs = None
) -> Quantized:
    return hqq(weight, dtype)


def _search(
    weight: npt.NDArray[np.float32], dtype: str, hessian: Hessian | None, outputs: Outputs = None
) -> Quantized:
    return search(weight, dtype, None if hessian is None else np.diag(hessian))


def _gptq(
    weight: npt.NDArray[np.float32], dtype: str, hessian: Hessian | None, outputs: Outputs = None
) -> Quantized:
    return search(weight, dtype) if hessian is None else gptq(weight, dtype, hessian, outputs)


METHODS: dict[str, Method] = {
    "nearest": Method(_nearest),
    "search": Method(_search),
    "hqq": Method(_hqq, even=True),
    "gptq": Method(_gptq, needs_text=True),
    "awq": Method(_search, needs_text=True, scales_channels=True),
    "awq-gptq": Method(_gptq, needs_text=True, scales_channels=True),
    "gptq-tuned": Method(_gptq, needs_text=True, tunes=True),
    "awq-gptq-tuned": Method(_gptq, needs_text=True, scales_channels=True, tunes=True),
}


def parse_scheme(scheme: str) -> tuple[str, str]:
    """The precision and the method of "int4", "int4-search", "int8-head4-gptq": nearest where none is named.

    Raises:
        DogeExportError: there is no such scheme.
    """
    found = [(scheme, "nearest")] if scheme in PRECISIONS else []
    for precision in PRECISIONS:
        method = scheme.removeprefix(f"{precision}-")
        if method != scheme and method in METHODS and METHODS[method].suits(PRECISIONS[precision]):
            found.append((precision, method))
    if not found or found[0][0] == "fp32":
        known = ", ".join(name for name in PRECISIONS if name != "fp32")
        better = " or ".join(f"-{name}" for name in METHODS if name != "nearest")
        raise DogeExportError(
            f"There is no scheme {scheme!r}.", f"Choose {known}, alone or with {better} behind."
        )
    return found[0]


def split_setting(setting: str) -> tuple[str, str]:
    """Of "int8:32@search": "int8:32", what a matrix is stored in, and "search", what it is rounded by; either
    may be empty."""
    dtype, _, method = setting.partition("@")
    return dtype, method
