"""The next token from logits, in numpy, with the processors of transformers in its order."""

__all__ = ["Sampler", "process", "repetition_penalty", "temperature", "top_k", "top_p"]

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from doge_export.runtime.options import GenerationOptions

Scores = npt.NDArray[np.float32]

_REMOVED = np.float32(-np.inf)
_NOTHING_SEEN = np.empty(0, np.int64)


def repetition_penalty(scores: Scores, seen: npt.NDArray[np.int64], penalty: float) -> Scores:
    """Make every token in `seen` less likely: positive scores are divided, negative ones multiplied.

    A token counts once however often it was seen; the prompt counts too.
    """
    scores = scores.copy()
    tokens = np.unique(seen)
    tokens = tokens[tokens < scores.shape[-1]]
    found = scores[tokens]
    scores[tokens] = np.where(found < 0, found * np.float32(penalty), found / np.float32(penalty))
    return scores


def temperature(scores: Scores, value: float) -> Scores:
    """Divide by the temperature, which is above 0."""
    return scores / np.float32(value)


def top_k(scores: Scores, k: int) -> Scores:
    """Keep the k best scores, and all that equal the k-th."""
    k = min(k, scores.shape[-1])
    limit = np.partition(scores, -k)[-k]
    return np.where(scores < limit, _REMOVED, scores)


def top_p(scores: Scores, p: float) -> Scores:
    """Keep the fewest best scores whose probabilities sum to p or more; never fewer than one."""
    kept = np.flatnonzero(np.isfinite(scores))  # after top_k there is little left to sort
    if kept.size == 0:
        return scores
    order = kept[np.argsort(scores[kept], kind="stable")]
    remove = np.cumsum(_softmax(scores[order])) <= np.float32(1 - p)
    remove[-1] = False
    result = scores.copy()
    result[order[remove]] = _REMOVED
    return result


def process(scores: Scores, seen: npt.NDArray[np.int64], options: GenerationOptions) -> Scores:
    """All processors that `options` ask for. `seen`: the ids of prompt and text so far, without padding."""
    if options.repetition_penalty != 1.0:
        scores = repetition_penalty(scores, seen, options.repetition_penalty)
    if options.greedy:
        return scores
    if options.temperature != 1.0:
        scores = temperature(scores, options.temperature)
    if options.top_k > 0:
        scores = top_k(scores, options.top_k)
    if options.top_p < 1.0:
        scores = top_p(scores, options.top_p)
    return scores


class Sampler:
    """Chooses tokens for the rows of a batch.

    Every row draws from a generator of its own, so that its text does not depend on its neighbours. The rows
    here are those from `first` on of all that were asked for.
    """

    def __init__(self, options: GenerationOptions, rows: int, first: int = 0) -> None:
        self._options = options
        self._all_but_top_p = replace(options, top_p=1.0)
        seeds = np.random.SeedSequence(options.seed).spawn(first + rows)[first:]
        self._generators = [np.random.default_rng(seed) for seed in seeds]

    def choose(self, row: int, logits: Scores, seen: Sequence[int]) -> int:
        """The next token of `row`; the lowest id among equals where decoding is greedy."""
        scores = process(logits.astype(np.float32, copy=False), np.asarray(seen, np.int64), self._options)
        if self._options.greedy:
            return int(np.argmax(scores))
        return self._draw(row, scores)

    def choose_among(self, row: int, token_ids: npt.NDArray[np.int64], token_logits: Scores) -> int | None:
        """The token that `choose` would take from all logits, from the best ones [count], best first.

        Needs `options.candidates` of them. None where it cannot be known: equals of the k-th best may go on
        behind the last one. Nothing was drawn then.
        """
        options = self._options
        if options.greedy:
            return int(token_ids[0])
        order = np.argsort(token_ids)  # as in all logits: sums and equals depend on the order
        scores = process(token_logits[order], _NOTHING_SEEN, self._all_but_top_p)
        if (scores > _REMOVED).all():
            return None
        if options.top_p < 1.0:
            scores = top_p(scores, options.top_p)
        return int(token_ids[order[self._draw(row, scores)]])

    def _draw(self, row: int, scores: Scores) -> int:
        kept = np.flatnonzero(scores > _REMOVED)
        total = np.cumsum(_softmax(scores[kept]), dtype=np.float64)
        drawn = self._generators[row].random() * total[-1]
        return int(kept[np.searchsorted(total, drawn, side="right")])


def _softmax(scores: Scores) -> Scores:
    powers = np.exp(scores - scores.max())
    result: Scores = powers / powers.sum()
    return result
