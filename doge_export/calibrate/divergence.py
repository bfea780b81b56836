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
    """Over `tokens` positions: mean KL(first || second) in nats, the share where both have the same best
    token, and the perplexities."""

    kl_divergence: float
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
    real = np.ones((1, length), bool)
    figures, costs = [], np.zeros(2)
    for row in ids:
        runs = []
        for session in (base, other):
            pieces = [logits for _, logits in read_rows(session, row[None], parts, length)]
            runs.append(Run(np.concatenate(pieces, 1)))
        figures.append(compare_logits(runs[0], runs[1], real))
        costs += [token_costs(run.logits[0, :-1], row[1:]) for run in runs]
        advance(length)
    base_perplexity, perplexity = (math.exp(cost / (count * (length - 1))) for cost in costs)
    means = {
        key: float(np.mean([one[key] for one in figures])) for key in ("kl_divergence", "top1_agreement")
    }
    return Divergence(**means, perplexity=perplexity, base_perplexity=base_perplexity, tokens=ids.size)
