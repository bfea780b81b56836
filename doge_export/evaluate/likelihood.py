"""Log-probabilities of tokens behind tokens."""

__all__ = ["Pair", "score_pairs"]

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from doge_export.core.progress import Progress
from doge_export.evaluate.perplexity import batches, calls_of, token_costs
from doge_export.runtime import Session
from doge_export.runtime.prefill import read_rows

#: Tokens that are given, and those to be scored behind them; of each one at least.
Pair = tuple[list[int], list[int]]


def score_pairs(
    session: Session, pairs: Sequence[Pair], max_length: int, progress: Progress
) -> list[tuple[float, bool]]:
    """Each continuation's log-probability after its context, of which the last `max_length` tokens before the
    continuation's last one are read, and whether every token is the best one. Several share a call where
    each gives what it gives alone. `progress` gets those that are done."""
    # The last token is not read: nothing comes after it.
    rows = [(context + target)[-(max_length + 1) :] for context, target in pairs]
    scores: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
    order = sorted(range(len(pairs)), key=lambda number: -len(rows[number]))
    for part in batches(session, [len(rows[number]) - 1 for number in order]):
        batch = order[part]
        targets = [len(pairs[number][1]) for number in batch]
        scored = _score(session, [rows[number] for number in batch], targets)
        for number, score in zip(batch, scored, strict=True):
            scores[number] = score
        progress(len(batch))
    return scores


def _score(session: Session, rows: Sequence[list[int]], targets: Sequence[int]) -> list[tuple[float, bool]]:
    """Score the last `targets` tokens of each row. Shorter rows are filled up behind, which nothing before
    sees."""
    length = max(map(len, rows)) - 1
    ids = np.zeros((len(rows), length), np.int64)
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens) - 1] = tokens[:-1]
    totals, greedy = np.zeros(len(rows)), np.ones(len(rows), bool)
    for part, logits in read_rows(session, ids, calls_of(session, length), length):
        for number, (tokens, count) in enumerate(zip(rows, targets, strict=True)):
            begin, end = max(part.start, len(tokens) - 1 - count), min(part.stop, len(tokens) - 1)
            if begin < end:
                mine: npt.NDArray[np.float32] = logits[number, begin - part.start : end - part.start]
                wanted = np.array(tokens[begin + 1 : end + 1])
                greedy[number] &= bool((mine.argmax(-1) == wanted).all())
                totals[number] -= token_costs(mine, wanted)
    return list(zip(totals.tolist(), greedy.tolist(), strict=True))
