"""How `quantize --scheme` rounds: what a method is made of, which there are, and the grammar of a scheme."""

import importlib.util
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Protocol

import numpy as np

from doge_export.core.errors import DogeExportError
from doge_export.weights.arrays import Float64, Matrix
from doge_export.weights.formats import WeightFormat
from doge_export.weights.precisions import PRECISIONS, Precision
from doge_export.weights.rounding.gptq import gptq
from doge_export.weights.rounding.hqq import hqq
from doge_export.weights.rounding.round_to_nearest import Quantized, quantize
from doge_export.weights.rounding.scale_search import search

__all__ = [
    "GPTQ",
    "HQQ",
    "METHODS",
    "NEAREST",
    "SEARCH",
    "Method",
    "Rounding",
    "Scaling",
    "Scheme",
    "check_method",
    "parse_scheme",
    "split_setting",
]


class Round(Protocol):
    """Takes a matrix [n, k], its format, the mean of x x^T [k, k] of what it is multiplied with, or None
    where nothing is known of that, and the metric [n, n] of what comes out (weights/selection.py)."""

    def __call__(
        self,
        weight: Matrix,
        form: WeightFormat,
        hessian: Matrix | None,
        outputs: Float64 | None = None,
        /,
    ) -> Quantized: ...


def _nearest(
    weight: Matrix, form: WeightFormat, hessian: Matrix | None, outputs: Float64 | None = None
) -> Quantized:
    return quantize(weight, form)


def _hqq(
    weight: Matrix, form: WeightFormat, hessian: Matrix | None, outputs: Float64 | None = None
) -> Quantized:
    return hqq(weight, form)


def _search(
    weight: Matrix, form: WeightFormat, hessian: Matrix | None, outputs: Float64 | None = None
) -> Quantized:
    return search(weight, form, None if hessian is None else np.diag(hessian))


def _gptq(
    weight: Matrix, form: WeightFormat, hessian: Matrix | None, outputs: Float64 | None = None
) -> Quantized:
    return search(weight, form) if hessian is None else gptq(weight, form, hessian, outputs)


@dataclass(frozen=True)
class Rounding:
    """How one matrix is rounded. `learns`: without a calibration text there is no point in it. `even`: it
    knows numbers at even distances only."""

    name: str
    round: Round = field(compare=False)
    learns: bool = False
    even: bool = False


class Scaling(Enum):
    """What is folded in before, so that norms and up_proj are others too."""

    NONE = ""
    AWQ = "awq"


NEAREST = Rounding("nearest", _nearest)
SEARCH = Rounding("search", _search)
HQQ = Rounding("hqq", _hqq, even=True)
GPTQ = Rounding("gptq", _gptq, learns=True)


@dataclass(frozen=True)
class Method:
    """How a model is rounded, by the name that `str` gives: "search", "awq" (which rounds by search),
    "awq-gptq-tuned". `tuned`: scales and norms learn from the full model at the end
    (doge_export.compress.distillation)."""

    rounding: Rounding
    scaling: Scaling = Scaling.NONE
    tuned: bool = False

    @classmethod
    def parse(cls, text: str) -> "Method":
        """The method of that name.

        Raises:
            DogeExportError: there is no such method.
        """
        if text not in METHODS:
            raise DogeExportError(f"rounding {text!r} does not exist.", f"Choose {' or '.join(METHODS)}.")
        return METHODS[text]

    def __str__(self) -> str:
        parts = [] if self.scaling is Scaling.NONE else [self.scaling.value]
        if not parts or self.rounding != SEARCH:
            parts.append(self.rounding.name)
        return "-".join([*parts, "tuned"] if self.tuned else parts)

    def round(
        self, weight: Matrix, form: WeightFormat, hessian: Matrix | None, outputs: Float64 | None = None
    ) -> Quantized:
        """A matrix [n, k] in that format, as Round has it."""
        return self.rounding.round(weight, form, hessian, outputs)

    @property
    def scales_channels(self) -> bool:
        """Whether it makes other weights of those that are not rounded, too."""
        return self.scaling is not Scaling.NONE

    @property
    def needs_text(self) -> bool:
        """Whether there is no point in it without a calibration text."""
        return self.rounding.learns or not self.of_matrices

    @property
    def of_matrices(self) -> bool:
        """Whether single matrices may be rounded by this method, and others by another."""
        return not (self.scales_channels or self.tuned)

    @property
    def scaled(self) -> "Method | None":
        """The method that rounds as this one does once scales are folded in; None where there is none."""
        combined = replace(self, scaling=Scaling.AWQ)
        return combined if combined in METHODS.values() else None

    def suits(self, precision: Precision) -> bool:
        """Whether it can make that precision; a static one is rounded to nearest alone."""
        return self == Method(NEAREST) or (precision.static is None and self.knows(precision))

    def knows(self, precision: Precision) -> bool:
        """Whether it knows the distances of that precision's numbers."""
        return not (precision.floating and self.rounding.even)


#: All there are, by name.
METHODS: dict[str, Method] = {
    str(method): method
    for method in (
        Method(NEAREST),
        Method(SEARCH),
        Method(HQQ),
        Method(GPTQ),
        Method(SEARCH, Scaling.AWQ),
        Method(GPTQ, Scaling.AWQ),
        Method(GPTQ, tuned=True),
        Method(GPTQ, Scaling.AWQ, tuned=True),
    )
}


def check_method(method: Method) -> None:
    """Refuse a method that cannot run here: what tunes learns by torch's gradients.

    Raises:
        DogeExportError: torch is not installed.
    """
    if method.tuned and importlib.util.find_spec("torch") is None:
        raise DogeExportError(
            f"Rounding by {method} needs torch, which is not installed.", "pip install 'doge-export[export]'"
        )


@dataclass(frozen=True)
class Scheme:
    """A precision, and the method that makes it: `str` gives what `quantize --scheme` takes."""

    precision: Precision
    method: Method = METHODS["nearest"]

    def __str__(self) -> str:
        name = self.precision.name
        return name if self.method == METHODS["nearest"] else f"{name}-{self.method}"


def parse_scheme(scheme: str) -> Scheme:
    """The precision and the method of "int4", "int4-search", "int8-head4-gptq": nearest where none is named.

    Raises:
        DogeExportError: there is no such scheme.
    """
    schemes = [Scheme(PRECISIONS[scheme])] if scheme in PRECISIONS else []
    for name, precision in PRECISIONS.items():
        method = METHODS.get(scheme.removeprefix(f"{name}-")) if scheme.startswith(f"{name}-") else None
        if method is not None and method.suits(precision):
            schemes.append(Scheme(precision, method))
    if not schemes or not schemes[0].precision.rounds:
        known = ", ".join(name for name, each in PRECISIONS.items() if each.rounds)
        better = " or ".join(f"-{name}" for name in METHODS if name != "nearest")
        raise DogeExportError(
            f"There is no scheme {scheme!r}.", f"Choose {known}, alone or with {better} behind."
        )
    return schemes[0]


def split_setting(setting: str) -> tuple[str, str]:
    """Split "int8:32@search" into "int8:32", what a matrix is stored in, and "search", what rounds it; either
    may be empty."""
    dtype, _, method = setting.partition("@")
    return dtype, method
