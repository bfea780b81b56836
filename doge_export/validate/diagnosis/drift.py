"""How far a backend's inner values are from the reference's, part by part, and where they part first."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from doge_export.validate.metrics import equal_experts, equal_keys
from doge_export.validate.run import Run
from doge_export.validate.schedules import Schedule, Tokens

__all__ = [
    "DRIFT_LIMITS",
    "Departure",
    "bisect",
    "departure",
    "drift_table",
    "layer_parts",
    "limits_of",
    "traced_parts",
]

#: dtype, or what the native kernels make of rounded weights -> how far a part may be from the reference's,
#: relative to the root mean square of its values there, before it is named. Those of 16 bits, and of
#: activations in int8, are guesses.
DRIFT_LIMITS = {"float32": 5e-5, "float16": 5e-2, "bfloat16": 3e-1, "rounded": 1e-2, "w8a8": 3e-1}

_LAYER = ("value", "key", "dt", "keys", "attention", "experts", "feed_forward")


@dataclass(frozen=True)
class Departure:
    """The first part of the first call that is further off than its limit."""

    call: int
    part: str
    value: float


def layer_parts(layer: int) -> tuple[str, ...]:
    """One layer's parts in the order in which they are computed."""
    return tuple(f"{layer}.{part}" for part in _LAYER)


def traced_parts(layers: int) -> tuple[str, ...]:
    """All parts in that order; the last is the head's logits."""
    within = (part for layer in range(layers) for part in layer_parts(layer))
    return ("embedding", "cos", "sin", *within, "head")


def measure(expected: Run, got: Run, schedule: Schedule, tokens: Tokens, call: int) -> dict[str, float]:
    """Part -> its largest difference in one call over real tokens, relative to the root mean square of the
    reference's values; of sets, the share that differs. Only what both sides recorded."""
    at = sum(schedule.steps[:call])
    end = at + schedule.steps[call]
    real = tokens.real[:, at:end]
    mine, theirs = expected.trace[call], got.trace[call]
    mine = mine | {f"{layer}.dt": dt for layer, dt in enumerate(expected.weights[call])}
    figures = {
        part: _relative(mine[part], theirs[part], part, real, tokens.real[:, :end])
        for part in mine
        if part in theirs
    }
    if call < len(got.keys):
        for layer, keys in enumerate(zip(expected.keys[call], got.keys[call], strict=False)):
            equal = equal_keys(*keys)
            rows = np.broadcast_to(real[:, None], equal.shape)
            figures[f"{layer}.keys"] = float((~equal[rows]).mean()) if rows.any() else 0.0
        for layer, experts in enumerate(zip(expected.experts[call], got.experts[call], strict=False)):
            figures[f"{layer}.experts"] = float((~equal_experts(*experts, real)).mean())
    kept = [len(schedule.kept(count)) for count in schedule.steps]
    part = slice(sum(kept[:call]), sum(kept[: call + 1]))
    compared = schedule.compared(tokens)[:, part]
    if got.logits.size and compared.any():
        first, second = expected.logits[:, part][compared], got.logits[:, part][compared]
        figures["head"] = _ratio(np.abs(first - second), first)
    return figures


def departure(
    expected: Run,
    got: Run,
    schedule: Schedule,
    tokens: Tokens,
    limits: Callable[[str], float],
) -> Departure | None:
    """The first call, and in it the first part, further off than its limit; None where there is none."""
    for call in range(min(len(expected.trace), len(got.trace))):
        figures = measure(expected, got, schedule, tokens, call)
        for part in traced_parts(len(expected.weights[call])):
            if part in figures and not figures[part] <= limits(part):
                return Departure(call, part, figures[part])
    return None


def bisect(departs: Callable[[int], bool], layers: int) -> int:
    """The first layer for which `departs` is true, given that all after it do too; `layers` if none does."""
    low, high = 0, layers
    while low < high:
        middle = (low + high) // 2
        if departs(middle):
            high = middle
        else:
            low = middle + 1
    return low


def drift_table(expected: Run, got: Run, schedule: Schedule, tokens: Tokens) -> dict[str, float]:
    """Part -> its largest figure of any call, in the order in which the parts are computed."""
    calls = range(min(len(expected.trace), len(got.trace)))
    measured = [measure(expected, got, schedule, tokens, call) for call in calls]
    order = traced_parts(len(expected.weights[0]) if expected.weights else 0)
    return {
        part: float(np.max([figures[part] for figures in measured if part in figures]))  # keeps NaN
        for part in order
        if any(part in figures for figures in measured)
    }


def _relative(
    mine: npt.NDArray[np.float32],
    theirs: npt.NDArray[np.float32],
    part: str,
    real: npt.NDArray[np.bool_],
    covered: npt.NDArray[np.bool_],
) -> float:
    theirs = np.asarray(theirs, np.float32)
    if part.endswith((".key", ".value", ".dt")):
        shared = min(mine.shape[2], covered.shape[1])  # a sliding cache of the reference forgets
        if theirs.shape[2] < shared:
            return float("inf")
        mine, theirs = mine[:, :, -shared:], theirs[:, :, -shared:]
        rows = np.broadcast_to(covered[:, None, -shared:], mine.shape[:3])
        first, second = mine[rows], theirs[rows]
        held = ~np.isnan(second)  # NaN: not in a bounded cache; in another one the logits say so
        return _ratio(np.abs(first - second)[held], first)
    shape = np.broadcast_shapes(mine.shape, theirs.shape)
    rows = np.broadcast_to(real, shape[:2])
    mine, theirs = np.broadcast_to(mine, shape)[rows], np.broadcast_to(theirs, shape)[rows]
    return _ratio(np.abs(mine - theirs), mine)


def _ratio(difference: npt.NDArray[np.float32], size: npt.NDArray[np.float32]) -> float:
    if not difference.size:
        return 0.0
    return float(difference.max() / max(float(np.sqrt(np.square(size, dtype=np.float64).mean())), 1e-30))


def limits_of(limit: float, sets: bool) -> Callable[[str], float]:
    """Part -> its limit. `sets`: whether keys and experts must be the same."""

    def limit_of(part: str) -> float:
        if part.endswith((".keys", ".experts")):
            return 0.0 if sets else 1.0
        return limit

    return limit_of
