"""The types of all matrices that lose least within a budget of bytes, or are smallest within one of KL.

What rounding one matrix costs is measured by itself, in every type. These costs very nearly add up, for a
small KL is a quadratic form in the errors and those of different matrices are hardly correlated: so the best
mixture within a budget is a knapsack of one type a matrix. (A price of a byte, Lagrange's multiplier, finds
only those on the convex hull: a small model's table is so large a step that whole ranges of budgets lie
between.) The sum is an estimate: what is chosen is measured as a whole, beside all matrices in one type, and
the best of these is taken.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from doge_export.errors import DogeExportError
from doge_export.quantize import role_of, stays_float
from doge_export.sensitivity.probe import Effect
from doge_export.sensitivity.study import Study

__all__ = ["TYPES", "Mixture", "choose", "compressed", "measure"]

#: What is tried of each matrix.
TYPES = ("int4:128", "int4", "int4:16", "int8", "int8:32", "int8:8", "fp32")

_CELLS = 1 << 15


@dataclass(frozen=True)
class Mixture:
    """Matrix -> type, bytes of all tensors, and what it does to the text that was searched by."""

    types: Mapping[str, str]
    bytes: int
    effect: Effect


@dataclass(frozen=True)
class _Option:
    dtype: str
    bytes: int
    cost: float


Costs = Mapping[str, Sequence[_Option]]


def measure(
    study: Study,
    planned: Callable[[int], None] = lambda count: None,
    advance: Callable[[str], None] = lambda name: None,
) -> Costs:
    """Matrix -> its types, with their bytes and what each costs by itself."""
    work = [
        (name, dtype)
        for name in study.matrices
        if not stays_float(name)
        for dtype in TYPES
        if study.fits(name, dtype)
    ]
    planned(len(work))
    options: dict[str, list[_Option]] = {}
    for name, dtype in work:
        advance(f"{name.removesuffix('.weight')} in {dtype}")
        cost = study.effect({name: dtype}).kl_divergence
        options.setdefault(name, []).append(_Option(dtype, study.bytes({name: dtype}, only=True), cost))
    return options


def choose(study: Study, costs: Costs, max_bytes: int | None = None, max_kl: float | None = None) -> Mixture:
    """The mixture of least KL whose tensors take at most `max_bytes`, or the smallest of at most `max_kl`.

    Raises:
        DogeExportError: there is none.
    """
    if max_bytes is not None:
        return _least_kl(study, costs, max_bytes)
    assert max_kl is not None
    return _smallest(study, costs, max_kl)


def compressed(types: Mapping[str, str]) -> dict[str, str]:
    """The same types by role where all matrices of a role have one, and else by layer and role."""
    found = {}
    for role in dict.fromkeys(map(role_of, types)):
        own = {name: dtype for name, dtype in types.items() if role_of(name) == role}
        common = max(sorted(set(own.values())), key=list(own.values()).count)
        found[role] = common
        for name, dtype in own.items():
            if dtype != common:
                found[f"layers.{name.split('.')[2]}.{role}"] = dtype
    return found


def _best(study: Study, costs: Costs, max_bytes: int) -> dict[str, str] | None:
    """The types whose costs have the smallest sum within `max_bytes`; None where nothing fits.

    The knapsack of one option of each group, solved by dynamic programming over bytes in `_CELLS` units, each
    option's rounded up.
    """
    free = max_bytes - (study.bytes({}) - study.bytes(dict.fromkeys(costs, "fp32"), only=True))
    if free <= 0:
        return None
    unit = max(1, -(-free // _CELLS))
    cells = free // unit + 1
    least = np.zeros(cells)  # of the matrices so far, within so many units
    chosen = []
    for options in costs.values():
        sizes = [-(-option.bytes // unit) for option in options]
        sums = np.full((len(options), cells), np.inf)
        for row, option, size in zip(sums, options, sizes, strict=True):
            if size < cells:
                row[size:] = least[: cells - size] + option.cost
        pick = sums.argmin(0)
        least = np.take_along_axis(sums, pick[None], 0)[0]
        chosen.append((pick, sizes))
    if not np.isfinite(least[-1]):
        return None
    types, at = {}, cells - 1
    for (name, options), (pick, sizes) in reversed(list(zip(costs.items(), chosen, strict=True))):
        types[name] = options[pick[at]].dtype
        at -= sizes[pick[at]]
    return dict(reversed(types.items()))


def _least_kl(study: Study, costs: Costs, max_bytes: int) -> Mixture:
    types = _best(study, costs, max_bytes)
    if types is None:
        smallest = {name: min(options, key=lambda each: each.bytes).dtype for name, options in costs.items()}
        raise DogeExportError(
            f"No mixture of types is that small: the weights take {study.bytes(smallest):,} bytes at least, "
            f"and {max(max_bytes, 0):,} are left for them.",
            "Give a larger --max-bytes.",
        )
    candidates = [types]
    for dtype in TYPES:
        alike = {name: dtype for name in costs if study.fits(name, dtype)}
        if len(alike) == len(costs) and study.bytes(alike) <= max_bytes:
            candidates.append(alike)
    return min((_mixture(study, each) for each in candidates), key=lambda each: each.effect.kl_divergence)


def _smallest(study: Study, costs: Costs, max_kl: float) -> Mixture:
    """By bisection over budgets of bytes."""
    full = study.bytes({})
    best = _mixture(study, dict.fromkeys(costs, "fp32"))
    if best.effect.kl_divergence > max_kl:
        raise DogeExportError(
            f"No mixture of types has a KL of {max_kl:g} or less.", "Give a larger --max-kl."
        )
    low, high = 0, full
    while high - low > full // 1000:
        middle = (low + high) // 2
        types = _best(study, costs, middle)
        found = None if types is None else _mixture(study, types)
        if found is not None and found.effect.kl_divergence <= max_kl:
            best, high = found, min(middle, found.bytes)
        else:
            low = middle
    return best


def _mixture(study: Study, types: Mapping[str, str]) -> Mixture:
    return Mixture(dict(types), study.bytes(types), study.effect(types))
