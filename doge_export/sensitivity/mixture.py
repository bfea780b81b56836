"""The types of all matrices that lose least within a budget of bytes, or are smallest within one of KL.

The costs of single matrices very nearly add up, for those of different matrices are hardly correlated: so the
best mixture within a budget is a knapsack of one type a matrix. (A price of a byte, Lagrange's multiplier,
finds only those on the convex hull: a small model's table is so large a step that whole ranges of budgets lie
between.) The sum is an estimate, so whole mixtures are measured: the knapsack's, that with one type a role,
all matrices in one type or as a precision has them, and then neighbours of the best, knapsacks whose costs
are multiplied, role by role, with a random factor (a (1+1) evolution strategy). The first ones are measured
as they are and with AWQ's scales, neighbours as the best of these, and by a few windows first. What decides
is Effect.typical_kl, and the mean KL must not be worse for it: what is taken in place of a single type has
to be better by both, on all windows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from doge_export.errors import DogeExportError
from doge_export.quantize import PRECISIONS, role_of, stays_float, stored_dtype
from doge_export.sensitivity.costs import TYPES, Costs, Option
from doge_export.sensitivity.probe import Effect
from doge_export.sensitivity.study import Study

__all__ = ["Mixture", "check_budget", "choose", "compressed"]

_CELLS = 1 << 15
_SPREAD = 0.7  # of the logarithm of a role's factor
_SEED = 0


@dataclass(frozen=True)
class Mixture:
    """Matrix -> type, bytes of all tensors, what it does to the text that was searched by, and with which of
    Study.scalings."""

    types: Mapping[str, str]
    bytes: int
    effect: Effect
    scaling: str = ""


def check_budget(study: Study, smallest: Mapping[str, str], max_bytes: int) -> None:
    """See whether the tensors take at most `max_bytes` with each matrix in the smallest type it may have.

    Raises:
        DogeExportError: they do not.
    """
    if (least := study.bytes(smallest)) > max_bytes:
        raise DogeExportError(
            f"No mixture of types is that small: the weights take {least:,} bytes at least, "
            f"and {max(max_bytes, 0):,} are left for them.",
            "Give a larger --max-bytes.",
        )


def choose(
    study: Study,
    costs: Costs,
    max_bytes: int | None = None,
    max_kl: float | None = None,
    neighbours: int = 0,
    advance: Callable[[str], None] = lambda name: None,
) -> Mixture:
    """The mixture of least typical KL whose tensors take at most `max_bytes`, or the smallest of a mean KL of
    at most `max_kl`. `neighbours` of the best are measured too; `advance` is told of each.

    Raises:
        DogeExportError: there is none.
    """
    if max_bytes is None:
        assert max_kl is not None
        return _smallest(study, costs, max_kl)
    best, factors = _least_kl(study, costs, max_bytes), np.zeros(len(_roles(costs)))
    rng = np.random.default_rng(_SEED)
    for number in range(neighbours):
        advance(f"mixture {number + 1} of {neighbours}")
        tried = factors + rng.normal(0, _SPREAD, len(factors))
        types = _fitting(study, _scaled(costs, tried), max_bytes)
        few, least = (study.effect(each, best.scaling, few=True).typical_kl for each in (types, best.types))
        if few < least and _better(found := _mixture(study, types, best.scaling), best):
            best, factors = found, tried
    return best


def _better(found: Mixture, best: Mixture) -> bool:
    one, other = found.effect, best.effect
    return one.typical_kl < other.typical_kl and one.kl_divergence <= other.kl_divergence


def compressed(types: Mapping[str, str]) -> dict[str, str]:
    """The same types by role where all matrices of a role have one, and else by layer and role; without those
    that stay as they are unless they are named."""
    found = {}
    for role in dict.fromkeys(map(role_of, types)):
        own = {name: dtype for name, dtype in types.items() if role_of(name) == role}
        common = max(sorted(set(own.values())), key=list(own.values()).count)
        if set(own.values()) == {"fp32"} and all(map(stays_float, own)):
            continue
        found[role] = common
        for name, dtype in own.items():
            if dtype != common:
                found[f"layers.{name.split('.')[2]}.{role}"] = dtype
    return found


def _roles(costs: Costs) -> list[str]:
    return list(dict.fromkeys(map(role_of, costs)))


def _scaled(costs: Costs, logarithms: np.ndarray) -> Costs:
    """Each role's costs times its factor."""
    factors = dict(zip(_roles(costs), np.exp(logarithms), strict=True))
    return {
        name: [replace(option, cost=option.cost * float(factors[role_of(name)])) for option in options]
        for name, options in costs.items()
    }


def _least_kl(study: Study, costs: Costs, max_bytes: int) -> Mixture:
    """Of the knapsack by matrices, the one by roles, and what there is without a search: all matrices in one
    type, or as a precision has them."""
    check_budget(study, _smallest_types(costs), max_bytes)
    mixtures = [_fitting(study, costs, max_bytes)]
    if (alike := _best_by_role(study, costs, max_bytes)) is not None:
        mixtures.append(alike)
    fitting = [each for each in _singles(study, costs) if study.bytes(each) <= max_bytes]
    singles = [found for each in fitting for found in _mixtures(study, each)]
    measured = [found for each in mixtures for found in _mixtures(study, each)]
    best = min(singles or measured, key=lambda each: each.effect.typical_kl)
    for mixture in measured:
        best = mixture if _better(mixture, best) else best
    return best


def _singles(study: Study, costs: Costs) -> list[dict[str, str]]:
    """All matrices in one type, or as a precision has them, where their costs are known."""
    found = [{name: "fp32" if stays_float(name) else dtype for name in costs} for dtype in TYPES]
    for precision in PRECISIONS:
        stored = {name: stored_dtype(name, study.shapes[name], precision, study.tied) for name in costs}
        found.append({name: dtype or "fp32" for name, dtype in stored.items()})
    return [
        types
        for types in found
        if all(any(each.dtype == types[name] for each in options) for name, options in costs.items())
    ]


def _best_by_role(study: Study, costs: Costs, max_bytes: int) -> dict[str, str] | None:
    """The same with one type for all matrices of a role."""
    sums: dict[str, list[Option]] = {}
    for role in _roles(costs):
        own = [options for name, options in costs.items() if role_of(name) == role]
        by_type = [{option.dtype: option for option in options} for options in own]
        common = [dtype for dtype in by_type[0] if all(dtype in each for each in by_type)]
        sums[role] = [
            Option(
                dtype,
                sum(each[dtype].bytes for each in by_type),
                sum(each[dtype].cost for each in by_type),
            )
            for dtype in common
        ]
    found = _knapsack(sums, _free(study, costs, max_bytes))
    return None if found is None else {name: found[role_of(name)] for name in costs}


def _fitting(study: Study, costs: Costs, max_bytes: int) -> dict[str, str]:
    """`_best` where the smallest fits. The knapsack rounds sizes up, and may not find what only just does."""
    return _best(study, costs, max_bytes) or _smallest_types(costs)


def _smallest_types(costs: Costs) -> dict[str, str]:
    return {name: min(options, key=lambda each: each.bytes).dtype for name, options in costs.items()}


def _best(study: Study, costs: Costs, max_bytes: int) -> dict[str, str] | None:
    """The types whose costs have the smallest sum within `max_bytes`; None where nothing fits."""
    return _knapsack(costs, _free(study, costs, max_bytes))


def _free(study: Study, costs: Costs, max_bytes: int) -> int:
    """What is left for the matrices."""
    return max_bytes - (study.bytes({}) - study.bytes(dict.fromkeys(costs, "fp32"), only=True))


def _knapsack(costs: Costs, free: int) -> dict[str, str] | None:
    """One option of each group, the sum of whose costs is smallest within `free` bytes, by dynamic
    programming over bytes in `_CELLS` units, each option's rounded up; None where nothing fits."""
    if free <= 0:
        return None
    unit = max(1, -(-free // _CELLS))
    cells = free // unit + 1
    least = np.zeros(cells)  # of the groups so far, within so many units
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


def _smallest(study: Study, costs: Costs, max_kl: float) -> Mixture:
    """By bisection over budgets of bytes."""
    full = study.bytes({})
    best = _mixtures(study, dict.fromkeys(costs, "fp32"))[0]
    if best.effect.kl_divergence > max_kl:
        raise DogeExportError(
            f"No mixture of types has a KL of {max_kl:g} or less.", "Give a larger --max-kl."
        )
    low, high = 0, full
    while high - low > full // 1000:
        middle = (low + high) // 2
        types = _best(study, costs, middle)
        scaled = () if types is None else _mixtures(study, types)
        found = min(scaled, key=lambda each: each.effect.kl_divergence, default=None)
        if found is not None and found.effect.kl_divergence <= max_kl:
            best, high = found, min(middle, found.bytes)
        else:
            low = middle
    return best


def _mixtures(study: Study, types: Mapping[str, str]) -> list[Mixture]:
    """With each scaling."""
    return [_mixture(study, types, scaling) for scaling in study.scalings]


def _mixture(study: Study, types: Mapping[str, str], scaling: str) -> Mixture:
    return Mixture(dict(types), study.bytes(types), study.effect(types, scaling), scaling)
