"""How far one bundle's distributions are from another's, on a text."""

__all__ = ["Divergence", "divergence"]

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from doge_export.runtime import Session

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
    divergences, same, costs = 0.0, 0, np.zeros(2)
    count, length = ids.shape
    for row in ids:
        caches = [session.new_cache(1) for session in (base, other)]
        for at in range(0, length, _CALL):
            part = row[None, at : at + _CALL]
            positions = np.arange(at, at + part.shape[1])[None]
            logits = []
            for place, session in enumerate((base, other)):
                covered = part.shape[1] + (0 if caches[place].streams else at)
                mask = np.ones((1, covered), np.int64)
                given, caches[place] = session.step(part, mask, positions, caches[place], length)
                logits.append(_log_softmax(given[0]))
            first, second = logits
            divergences += float((np.exp(first) * (first - second)).sum(dtype=np.float64))
            same += int((first.argmax(-1) == second.argmax(-1)).sum())
            targets = row[at + 1 : at + 1 + part.shape[1]]
            for place, values in enumerate(logits):
                chosen = np.take_along_axis(values[: len(targets)], targets[:, None], -1)
                costs[place] -= chosen.sum(dtype=np.float64)
        advance(length)
    scored = count * (length - 1)
    base_perplexity, perplexity = (float(np.exp(cost / scored)) for cost in costs)
    return Divergence(divergences / ids.size, same / ids.size, perplexity, base_perplexity, ids.size)


def _log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    logits = logits - logits.max(-1, keepdims=True)
    result: npt.NDArray[np.float32] = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return result
