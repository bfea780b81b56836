"""How far one bundle's distributions are from another's, on a text."""

__all__ = ["Divergence", "divergence"]

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from doge_export.core.progress import Progress, silent
from doge_export.evaluate.perplexity import token_costs
from doge_export.runtime import Session
from doge_export.runtime.prefill import read_rows
from doge_export.validate.metrics import LogitFigures, standard_error

_CALL = 128  # tokens of one call


@dataclass(frozen=True)
class Divergence:
    """Over `tokens` positions: mean KL(first || second) in nats, the share where both have the same best
    token, and the perplexities. `kl_error` and `top1_error`: standard errors of the first two by the means of
    the windows, None of one.

    A few tokens decide the mean, see `mixed_precision.probe.Effect`: what is nearer than the error is one."""

    kl_divergence: float
    kl_error: float | None
    top1_agreement: float
    top1_error: float | None
    perplexity: float
    base_perplexity: float
    tokens: int


def divergence(
    base: Session,
    other: Session,
    ids: npt.NDArray[np.int64],
    progress: Progress = silent,
) -> Divergence:
    """The divergence of `other` from `base` on ids [windows, length], each window from an empty cache;
    `progress` gets tokens."""
    count, length = ids.shape
    parts = [slice(at, min(at + _CALL, length)) for at in range(0, length, _CALL)]
    found, costs = LogitFigures(), np.zeros(2)
    progress(0, "judging")
    for row in ids:
        first, second = (read_rows(session, row[None], parts, length) for session in (base, other))
        for (part, mine), (_, theirs) in zip(first, second, strict=True):
            found.add(mine, theirs, np.ones(mine.shape[:2], bool))
            targets = row[part.start + 1 : part.stop + 1]
            costs += [token_costs(logits[0, : len(targets)], targets) for logits in (mine, theirs)]
        progress(length, "judging")
    base_perplexity, perplexity = (math.exp(cost / (count * (length - 1))) for cost in costs)
    return Divergence(
        float(found.divergences.mean()),
        standard_error(found.divergences, count),
        float(found.agreeing.mean()),
        standard_error(found.agreeing, count),
        perplexity,
        base_perplexity,
        ids.size,
    )
