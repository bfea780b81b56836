"""The types of all matrices that lose least within a budget of bytes, or are smallest within one of KL or of
top-1 agreement.

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

from dataclasses import dataclass, replace

import numpy as np

from doge_export.compress.mixed_precision.budget import Budget
from doge_export.compress.mixed_precision.costs import FORMS, Costs, Option
from doge_export.compress.mixed_precision.probe import Effect
from doge_export.compress.mixed_precision.study import Study
from doge_export.core.errors import DogeExportError
from doge_export.core.progress import Progress, silent
from doge_export.weights import (
    FULL,
    PRECISIONS,
    Float64,
    Formats,
    WeightFormat,
    role_of,
    stays_float,
    stored_format,
)

__all__ = ["Mixture", "check_budget", "choose", "compressed"]

_CELLS = 1 << 15
_SPREAD = 0.7  # of the logarithm of a role's factor
_SEED = 0


@dataclass(frozen=True)
class Mixture:
    """Matrix -> format, bytes of all tensors, what it does to the text that was searched by, and with which
    of Study.scalings."""

    types: Formats
    bytes: int
    effect: Effect
    scaling: WeightFormat | None = None


def check_budget(study: Study, smallest: Formats, max_bytes: int) -> None:
    """See whether the tensors take at most `max_bytes` with each matrix in the smallest type it may have.

    Raises:
        DogeExportError: they do not.
    """
    if (minimum := study.bytes(smallest)) > max_bytes:
        raise DogeExportError(
            f"No mixture of types is that small: the weights take {minimum:,} bytes at least, "
            f"and {max(max_bytes, 0):,} are left for them.",
            "Give a larger --max-bytes.",
        )


def choose(
    study: Study,
    costs: Costs,
    budget: Budget,
    neighbours: int = 0,
    progress: Progress = silent,
) -> Mixture:
    """The mixture of least typical KL whose tensors take at most the bytes of `budget`, or the smallest that
    loses no more than it allows. `neighbours` of the best within bytes are measured too; `progress` gets
    those.

    Raises:
        DogeExportError: there is none, or the text gives no standard error.
    """
    max_bytes = budget.max_bytes
    if max_bytes is None:
        return _smallest(study, costs, budget)
    best, factors = _least_kl(study, costs, max_bytes), np.zeros(len(_roles(costs)))
    rng = np.random.default_rng(_SEED)
    for number in range(neighbours):
        progress(0, f"mixture {number + 1} of {neighbours}")
        tried = factors + rng.normal(0, _SPREAD, len(factors))
        types = _fitting(study, _scaled(costs, tried), max_bytes)
        new_kl, best_kl = (
            study.effect(each, best.scaling, few=True).typical_kl for each in (types, best.types)
        )
        if new_kl < best_kl and _better(mixture := _mixture(study, types, best.scaling), best):
            best, factors = mixture, tried
        progress()
    return best


def _better(candidate: Mixture, best: Mixture) -> bool:
    one, other = candidate.effect, best.effect
    return one.typical_kl < other.typical_kl and one.kl_divergence <= other.kl_divergence


def compressed(types: Formats) -> dict[str, WeightFormat]:
    """The same types by role where all matrices of a role have one, and else by layer and role; without those
    that stay as they are unless they are named."""
    formats = {}
    for role in dict.fromkeys(map(role_of, types)):
        own = {name: form for name, form in types.items() if role_of(name) == role}
        common = max(sorted(set(own.values()), key=str), key=list(own.values()).count)
        if set(own.values()) == {FULL} and all(map(stays_float, own)):
            continue
        formats[role] = common
        for name, form in own.items():
            if form != common:
                formats[f"layers.{name.split('.')[2]}.{role}"] = form
    return formats


def _roles(costs: Costs) -> list[str]:
    return list(dict.fromkeys(map(role_of, costs)))


def _scaled(costs: Costs, logarithms: Float64) -> Costs:
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
    singles = [candidate for each in fitting for candidate in _mixtures(study, each)]
    measured = [candidate for each in mixtures for candidate in _mixtures(study, each)]
    best = min(singles or measured, key=lambda each: each.effect.typical_kl)
    for mixture in measured:
        best = mixture if _better(mixture, best) else best
    return best


def _singles(study: Study, costs: Costs) -> list[dict[str, WeightFormat]]:
    """All matrices in one type, or as a precision has them, where their costs are known."""
    candidates = [{name: FULL if stays_float(name) else form for name in costs} for form in FORMS]
    for precision in PRECISIONS.values():
        candidates.append(
            {name: stored_format(name, study.shapes[name], precision, study.tied) for name in costs}
        )
    return [
        types
        for types in candidates
        if all(any(each.form == types[name] for each in options) for name, options in costs.items())
    ]


def _best_by_role(study: Study, costs: Costs, max_bytes: int) -> dict[str, WeightFormat] | None:
    """The types of least cost with one type for all matrices of a role."""
    sums: dict[str, list[Option]] = {}
    for role in _roles(costs):
        own = [options for name, options in costs.items() if role_of(name) == role]
        by_type = [{option.form: option for option in options} for options in own]
        common = [form for form in by_type[0] if all(form in each for each in by_type)]
        sums[role] = [
            Option(
                form,
                sum(each[form].bytes for each in by_type),
                sum(each[form].cost for each in by_type),
            )
            for form in common
        ]
    chosen = _knapsack(sums, _free(study, costs, max_bytes))
    return None if chosen is None else {name: chosen[role_of(name)] for name in costs}


def _fitting(study: Study, costs: Costs, max_bytes: int) -> dict[str, WeightFormat]:
    """`_best` where the smallest fits. The knapsack rounds sizes up, and may not find what only just does."""
    return _best(study, costs, max_bytes) or _smallest_types(costs)


def _smallest_types(costs: Costs) -> dict[str, WeightFormat]:
    return {name: min(options, key=lambda each: each.bytes).form for name, options in costs.items()}


def _best(study: Study, costs: Costs, max_bytes: int) -> dict[str, WeightFormat] | None:
    """The types whose costs have the smallest sum within `max_bytes`; None where nothing fits."""
    return _knapsack(costs, _free(study, costs, max_bytes))


def _free(study: Study, costs: Costs, max_bytes: int) -> int:
    """Bytes that are left for the matrices."""
    return max_bytes - (study.bytes({}) - study.bytes(dict.fromkeys(costs, FULL), only=True))


def _knapsack(costs: Costs, free: int) -> dict[str, WeightFormat] | None:
    """One option of each group, the sum of whose costs is smallest within `free` bytes, by dynamic
    programming over bytes in `_CELLS` units, each option's rounded up; None where nothing fits."""
    if free <= 0:
        return None
    unit = max(1, -(-free // _CELLS))
    cells = free // unit + 1
    min_costs = np.zeros(cells)  # of the groups so far, within so many units
    chosen = []
    for options in costs.values():
        sizes = [-(-option.bytes // unit) for option in options]
        sums = np.full((len(options), cells), np.inf)
        for row, option, size in zip(sums, options, sizes, strict=True):
            if size < cells:
                row[size:] = min_costs[: cells - size] + option.cost
        pick = sums.argmin(0)
        min_costs = np.take_along_axis(sums, pick[None], 0)[0]
        chosen.append((pick, sizes))
    if not np.isfinite(min_costs[-1]):
        return None
    types, at = {}, cells - 1
    for (name, options), (pick, sizes) in reversed(list(zip(costs.items(), chosen, strict=True))):
        types[name] = options[pick[at]].form
        at -= sizes[pick[at]]
    return dict(reversed(types.items()))


def _smallest(study: Study, costs: Costs, budget: Budget) -> Mixture:
    """The smallest mixture within `budget`, by bisection over bytes."""
    full = study.bytes({})
    best = _mixtures(study, dict.fromkeys(costs, FULL))[0]
    if not budget.holds(best.effect):
        raise DogeExportError(
            f"No mixture of types has a KL of {budget.max_kl:g} or less.", "Give a larger --max-kl."
        )
    low, high = 0, full
    while high - low > full // 1000:
        middle = (low + high) // 2
        types = _best(study, costs, middle)
        scaled = () if types is None else _mixtures(study, types)
        candidate = max(scaled, key=lambda each: budget.score(each.effect), default=None)
        if candidate is not None and budget.holds(candidate.effect):
            best, high = candidate, min(middle, candidate.bytes)
        else:
            low = middle
    return best


def _mixtures(study: Study, types: Formats) -> list[Mixture]:
    """The mixture of these types with each scaling."""
    return [_mixture(study, types, scaling) for scaling in study.scalings]


def _mixture(study: Study, types: Formats, scaling: WeightFormat | None) -> Mixture:
    return Mixture(dict(types), study.bytes(types), study.effect(types, scaling), scaling)
