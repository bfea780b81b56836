"""Penalties on tokens that a text has already, as functions of the scores of the next one."""

__all__ = ["Scores", "count_penalty", "repetition_penalty"]

from typing import Any

import numpy as np
import numpy.typing as npt

#: [vocab], of float32, or of a wider type where float32 is too narrow.
Scores = npt.NDArray[np.floating[Any]]


def repetition_penalty(
    scores: Scores, seen: npt.NDArray[np.int64], penalty: float | np.floating[Any]
) -> Scores:
    """Make every token in `seen` less likely: positive scores are divided, negative ones multiplied.

    A token counts once however often it was seen; the prompt counts too.
    """
    scores = scores.copy()
    tokens = np.unique(seen)
    tokens = tokens[tokens < scores.shape[-1]]
    seen_scores, factor = scores[tokens], scores.dtype.type(penalty)
    scores[tokens] = np.where(seen_scores < 0, seen_scores * factor, seen_scores / factor)
    return scores


def count_penalty(scores: Scores, made: npt.NDArray[np.int64], frequency: float, presence: float) -> Scores:
    """Take `frequency` from the score of a token as many times as it is in `made`, and `presence` once. The
    prompt does not count: so OpenAI's API has both, and vLLM."""
    scores = scores.copy()
    tokens, counts = np.unique(made, return_counts=True)
    scores[tokens] -= (counts * frequency + presence).astype(scores.dtype)
    return scores
