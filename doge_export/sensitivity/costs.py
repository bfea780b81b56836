"""What storing each matrix in each type costs, measured in two types and carried over to the others.

A small KL is a quadratic form in the errors, so of one matrix it goes with the squared error of its products,
which is known for every type from the weights and what they are multiplied with. Measured is each matrix by
itself in `MEASURED`; other types of as many bits have that cost times the ratio of the squared errors. (Fine
blocks of int8 measured by themselves would say less: their costs drown in what changes by chance.)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from doge_export.quantize import stays_float
from doge_export.sensitivity.study import Study

__all__ = ["TYPES", "Costs", "Option", "measure"]

#: What may be chosen for a matrix.
TYPES = (
    *("int4:128", "int4:64", "int4", "int4:16", "int4:8"),
    *("int8", "int8:64", "int8:32", "int8:16", "int8:8"),
    "fp32",
)
#: What each matrix is measured in.
MEASURED = ("int4", "int8")


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
    """Of every matrix that may be rounded. `planned` is told how many measurements there are, `advance` of
    each before it is made."""
    names = [name for name in study.matrices if not stays_float(name)]
    anchors = {name: [dtype for dtype in MEASURED if study.fits(name, dtype)] for name in names}
    planned(sum(map(len, anchors.values())))
    found: dict[str, list[Option]] = {}
    for name, dtypes in anchors.items():
        costs = {"fp32": 0.0}
        for anchor in dtypes:
            advance(f"{name.removesuffix('.weight')} in {anchor}")
            cost = study.effect({name: anchor}).typical_kl
            per_error = cost / max(study.basis().squared_error(name, anchor), 1e-30)
            alike = [dtype for dtype in TYPES if dtype.startswith(anchor) and study.fits(name, dtype)]
            costs |= {dtype: per_error * study.basis().squared_error(name, dtype) for dtype in alike}
        found[name] = [
            Option(dtype, study.bytes({name: dtype}, only=True), costs[dtype])
            for dtype in TYPES
            if dtype in costs
        ]
    return found
