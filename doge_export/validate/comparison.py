"""Two runs of one schedule, side by side: their arrays, cut to what counts, given to the metrics."""

import numpy as np
import numpy.typing as npt

from doge_export.validate.metrics import (
    Selection,
    best_token_gaps,
    compare_experts,
    compare_keys,
    compare_logits,
)
from doge_export.validate.run import BestTokens, Run
from doge_export.validate.schedules import Call, Schedule, Tokens

__all__ = ["best_gaps", "compare_selection", "logit_figures"]


def logit_figures(call: Call, expected: Run, got: Run, near: float = 0.0) -> dict[str, float]:
    """The figures of `metrics.compare_logits` over the real positions of a call."""
    schedule, tokens = call
    return compare_logits(expected.logits, got.logits, schedule.compared(tokens), near)


def compare_selection(expected: Run, got: Run, tokens: Tokens, steps: tuple[int, ...]) -> Selection:
    """The reference's sets of keys and experts against those of `got`, over all calls and layers."""
    selection, at = Selection(), 0
    for call, count in enumerate(steps):
        real = tokens.real[:, at : at + count]
        at += count
        for mine, theirs, dt in zip(expected.keys[call], got.keys[call], expected.weights[call], strict=True):
            selection += compare_keys(mine, theirs, dt, real)
        for experts, others in zip(expected.experts[call], got.experts[call], strict=True):
            selection += compare_experts(experts, others, real)
    return selection


def best_gaps(got: Run, best: BestTokens, schedule: Schedule, tokens: Tokens) -> npt.NDArray[np.float64]:
    """How far the best tokens of one graph are from all logits of another, both of the same model, for every
    call and row that has a text by its end: after padding alone comes nothing that anybody reads, and a
    bounded cache does not hold what such a row averages over."""
    last = np.cumsum([len(schedule.kept(count)) for count in schedule.steps]) - 1
    gaps = best_token_gaps(got.logits[:, last], best.ids, best.logits)
    result: npt.NDArray[np.float64] = gaps[tokens.real[:, np.cumsum(schedule.steps) - 1]]
    return result
