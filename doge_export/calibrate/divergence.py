"""How far one bundle's distributions are from another's, on a text."""

__all__ = ["Divergence", "divergence"]

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from doge_export.evaluate.perplexity import token_costs
from doge_export.runtime import Session
from doge_export.runtime.reading import read_rows
from doge_export.validate.figures import compare_logits
from doge_export.validate.reference import Run

_CALL = 128  # tokens of one call


@dataclass(frozen=True)
class Divergence:
    """Over `tokens` positions: mean KL(first || second) in nats, its standard error by the means of the
    windows (None of one), the share where both have the same best token, and the perplexities.

    A few tokens decide the mean, see sensitivity.probe.Effect: what is nearer than the error is one."""

    kl_divergence: float
    kl_error: float | None
    top1_agreement: float
    perplexity: float
    base_perplexity: float
    tokens: int


def divergence(
    base: Session,
    other: Session,
    ids: npt.NDArray[np.int64],
    advance: Callable[[int], None] = lambda tokens: None,
) -> Divergence:
    """`other` against `base` on ids [windows, length], each window from an empty cache."""
    count, length = ids.shape
    parts = [slice(at, min(at + _CALL, length)) for at in range(0, length, _CALL)]
    divergences, same, costs = np.zeros(count), 0.0, np.zeros(2)
    for number, row in enumerate(ids):
        first, second = (read_rows(session, row[None], parts, length) for session in (base, other))
        for (part, mine), (_, theirs) in zip(first, second, strict=True):
            real = np.ones(mine.shape[:2], bool)
            figures = compare_logits(Run(mine), Run(theirs), real)
            divergences[number] += figures["kl_divergence"] * real.size
            same += figures["top1_agreement"] * real.size
            targets = row[part.start + 1 : part.stop + 1]
            costs += [token_costs(logits[0, : len(targets)], targets) for logits in (mine, theirs)]
        advance(length)
    base_perplexity, perplexity = (math.exp(cost / (count * (length - 1))) for cost in costs)
    means = divergences / length
    error = float(means.std(ddof=1) / math.sqrt(count)) if count > 1 else None
    return Divergence(float(means.mean()), error, same / ids.size, perplexity, base_perplexity, ids.size)
