"""What storing each matrix in each type costs, measured in two types and carried over to the others.

A small KL is a quadratic form in the errors, so of one matrix it goes with the squared error of its products,
which is known for every type from the weights and what they are multiplied with. Measured is each matrix by
itself in int4 and in int8; other types of as many bits, and float16 beside int8, have that cost times the
ratio of the squared errors. (Fine blocks of int8 measured by themselves would say less: their costs drown in
what changes by chance.) dt_proj and the router are stored as floats: of those, float16 is to choose.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from doge_export.quantize import HALF, stays_float
from doge_export.sensitivity.study import Study

__all__ = ["TYPES", "Costs", "Option", "measure", "smallest"]

#: What may be chosen for a matrix.
TYPES = (
    *("int4:128", "int4:64", "int4", "int4:16", "int4:8"),
    *("int8", "int8:64", "int8:32", "int8:16", "int8:8"),
    HALF,
    "fp32",
)
_FLOATS = (HALF, "fp32")
#: What a matrix is measured in -> what that tells the costs of, if its blocks are other than these.
_MEASURED = {"int4": ("int4",), "int8": ("int8", HALF)}


@dataclass(frozen=True)
class Option:
    """A type, what the matrix takes in it, and its cost, a typical KL (Effect.typical_kl)."""

    dtype: str
    bytes: int
    cost: float


#: Matrix -> its types.
Costs = Mapping[str, Sequence[Option]]


def measure(
    study: Study,
    planned: Callable[[int], None] = lambda count: None,
    advance: Callable[[str], None] = lambda name: None,
) -> Costs:
    """Of every matrix. `planned` is told how many measurements there are, `advance` of each before it is
    made."""
    work = {
        name: [
            (anchor, dtypes)
            for anchor, alike in _MEASURED.items()
            if study.fits(name, anchor)
            and (dtypes := [each for each in _types(study, name) if each.partition(":")[0] in alike])
        ]
        for name in study.matrices
    }
    planned(sum(map(len, work.values())))
    found: dict[str, list[Option]] = {}
    for name, anchors in work.items():
        costs = {"fp32": 0.0}
        for anchor, dtypes in anchors:
            advance(f"{name.removesuffix('.weight')} in {anchor}")
            cost = study.effect({name: anchor}, few=True).typical_kl
            per_error = cost / max(study.basis().squared_error(name, anchor), 1e-30)
            costs |= {dtype: per_error * study.basis().squared_error(name, dtype) for dtype in dtypes}
        found[name] = [
            Option(dtype, study.bytes({name: dtype}, only=True), costs[dtype])
            for dtype in _types(study, name)
            if dtype in costs
        ]
    return found


def smallest(study: Study) -> dict[str, str]:
    """Matrix -> the type that takes least of those it may have; known before anything is measured."""
    return {
        name: min(_types(study, name), key=lambda dtype: study.bytes({name: dtype}, only=True))
        for name in study.matrices
    }


def _types(study: Study, name: str) -> list[str]:
    return [dtype for dtype in (_FLOATS if stays_float(name) else TYPES) if study.fits(name, dtype)]
