"""What storing each matrix in each type costs, measured in two types and carried over to the others.

A small KL is a quadratic form in the errors, so of one matrix it goes with the squared error of its products,
which is known for every type from the weights and what they are multiplied with. Measured is each matrix by
itself in int4 and in int8; other types of as many bits, and float16 beside int8, have that cost times the
ratio of the squared errors. (Fine blocks of int8 measured by themselves would say less: their costs drown in
what changes by chance.) dt_proj and the router are stored as floats: of those, float16 is to choose.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from doge_export.compress.mixed_precision.study import Study
from doge_export.core.progress import Progress, silent
from doge_export.weights import FORMATS, FULL, HALF, WeightFormat, stays_float

__all__ = ["FORMS", "Costs", "Option", "measure", "smallest"]

#: What may be chosen for a matrix.
FORMS = (
    *map(WeightFormat.parse, ("int4:128", "int4:64", "int4", "int4:16", "int4:8")),
    *map(WeightFormat.parse, ("int8", "int8:64", "int8:32", "int8:16", "int8:8")),
    HALF,
    FULL,
)
_FLOATS = (HALF, FULL)
_INT4, _INT8 = FORMATS["int4"], FORMATS["int8"]
#: What a matrix is measured in -> what that tells the costs of, if its blocks are other than these.
_MEASURED = {_INT4: (_INT4,), _INT8: (_INT8, HALF)}


@dataclass(frozen=True)
class Option:
    """A format, what the matrix takes in it, and its cost, a typical KL (Effect.typical_kl)."""

    form: WeightFormat
    bytes: int
    cost: float


#: Matrix -> its formats.
Costs = Mapping[str, Sequence[Option]]


def measure(study: Study, more: int = 0, progress: Progress = silent) -> Costs:
    """Measure the costs of every matrix. `progress` gets measurements; `more` are planned beside these."""
    work = {
        name: [
            (anchor, forms)
            for anchor, alike in _MEASURED.items()
            if study.fits(name, anchor)
            and (forms := [each for each in _forms(study, name) if each.base in alike])
        ]
        for name in study.matrices
    }
    progress.planned(sum(map(len, work.values())) + more)
    options: dict[str, list[Option]] = {}
    for name, anchors in work.items():
        costs = {FULL: 0.0}
        for anchor, forms in anchors:
            progress(0, f"{name.removesuffix('.weight')} in {anchor}")
            cost = study.effect({name: anchor}, few=True).typical_kl
            per_error = cost / max(study.basis().squared_error(name, anchor), 1e-30)
            costs |= {form: per_error * study.basis().squared_error(name, form) for form in forms}
            progress()
        options[name] = [
            Option(form, study.bytes({name: form}, only=True), costs[form])
            for form in _forms(study, name)
            if form in costs
        ]
    return options


def smallest(study: Study) -> dict[str, WeightFormat]:
    """Matrix -> the format that takes least of those it may have; known before anything is measured."""
    return {
        name: min(_forms(study, name), key=lambda form: study.bytes({name: form}, only=True))
        for name in study.matrices
    }


def _forms(study: Study, name: str) -> list[WeightFormat]:
    return [form for form in (_FLOATS if stays_float(name) else FORMS) if study.fits(name, form)]
