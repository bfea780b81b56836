"""Perplexity and bits per byte of a text, in windows that overlap.

A window has `window` tokens and begins `stride` after the one before; of each window only those tokens are
scored that no earlier window scored, so that a token has at least window - stride others before it, but at
the start of the text. This is the sliding evaluation of transformers' documentation ("Perplexity of
fixed-length models"), with every token counted once.
"""

__all__ = ["Perplexity", "batches", "calls_of", "evaluate_text", "token_costs"]

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from doge_export.core.errors import DogeExportError, NoNumbersError
from doge_export.core.progress import AnyProgress, Progress, reporting, silent
from doge_export.core.tokenizer import Tokenizer
from doge_export.runtime import Session
from doge_export.runtime.neighbours import reads_in_pieces, rows_are_independent
from doge_export.runtime.prefill import read_rows

_WINDOW = 2048  # the longest that is taken unasked
_CALL = 128  # tokens of a row in one call
_LOGITS = 1 << 26  # of one call, at most


@dataclass(frozen=True)
class Perplexity:
    """The perplexity of a text: `perplexity` is exp of the mean negative log-likelihood of the scored tokens,
    `bits_per_byte` their sum in bits over the bytes they stand for in UTF-8. Beginning-of-text stands for
    none and is not scored."""

    perplexity: float
    bits_per_byte: float
    negative_log_likelihood: float
    tokens: int
    bytes: int
    window: int
    stride: int


def evaluate_text(
    session: Session,
    tokenizer: Tokenizer,
    text: str,
    *,
    window: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
    advance: Callable[[int], None] | None = None,
    progress: AnyProgress = silent,
) -> Perplexity:
    """Score `text`, or its first `limit` tokens. `window`: the model's max_position_embeddings, at most 2048,
    or the text if that is shorter; `stride`: half of it. `progress` gets scored tokens.
    `advance` is deprecated: the same as a function of their number alone.

    Raises:
        DogeExportError: the text has fewer than two tokens, the window does not fit in a static cache, or the
            stride is longer than the window.
    """
    progress = reporting(progress) if advance is None else _counting(advance)
    ids = np.array(tokenizer.encode(text), np.int64)
    size = len(text.encode("utf-8"))
    if limit is not None and limit < len(ids):
        ids = ids[:limit]
        size = len(tokenizer.decode(ids.tolist()).encode("utf-8"))
    if len(ids) < 2:
        raise DogeExportError("The text has fewer than two tokens, so that there is nothing to predict.")
    window = min(_WINDOW, session.bundle.config.max_position_embeddings) if window is None else window
    stride = max(1, window // 2) if stride is None else stride
    if not 1 <= stride < window:
        raise DogeExportError(
            f"A stride of {stride} does not fit a window of {window} tokens: the first of each has nothing "
            "before it.",
            "Give 1 or more, and less than the window.",
        )
    window = min(window, len(ids))
    stride = min(stride, window - 1)
    capacity = session.bundle.manifest.cache.max_length
    if capacity is not None and window > capacity:
        raise DogeExportError(
            f"A window of {window} tokens does not fit in the bundle's static cache of {capacity}.",
            f"Give --window {capacity} or less.",
        )
    total = 0.0
    for scored, count in _scores(session, ids, window, stride):
        total += scored
        progress(count)
    tokens = len(ids) - 1
    return Perplexity(
        perplexity=math.exp(total / tokens),
        bits_per_byte=total / math.log(2) / size,
        negative_log_likelihood=total,
        tokens=tokens,
        bytes=size,
        window=window,
        stride=stride,
    )


def _counting(advance: Callable[[int], None]) -> Progress:
    message = "evaluate_text has progress, a function of the tokens and a stage, in the place of advance."
    warnings.warn(message, DeprecationWarning, stacklevel=3)
    return reporting(lambda done, stage: advance(done))


def _scores(
    session: Session, ids: npt.NDArray[np.int64], window: int, stride: int
) -> Iterator[tuple[float, int]]:
    """Yield negative log-likelihood and number of newly scored tokens, several windows at a time."""
    starts = list(range(0, max(1, len(ids) - window + stride), stride))
    starts = [start for start in starts if start == 0 or start + window - stride < len(ids)]
    whole = [start for start in starts if start + window <= len(ids)]
    calls = [whole[rows] for rows in batches(session, [window] * len(whole))]
    calls += [[start] for start in starts[len(whole) :]]
    for batch in calls:
        length = min(window, len(ids) - batch[0])
        part = np.stack([ids[start : start + length] for start in batch])
        # A window's first tokens were scored by the one before it.
        first = np.array([1 if start == 0 else window - stride for start in batch])
        total = _negative_log_likelihood(session, part, first)
        yield total, int(sum(length - each for each in first))


def batches(session: Session, lengths: Sequence[int]) -> Iterator[slice]:
    """Cut rows of `lengths` tokens, the longest first, into batches, in which each row gives what it gives
    alone. Shorter rows of a batch are padded on the right."""
    bundle, at = session.bundle, 0
    while at < len(lengths):
        call = _CALL if reads_in_pieces(bundle, lengths[at]) else lengths[at]
        rows = max(1, _LOGITS // (min(call, lengths[at]) * bundle.config.vocab_size))
        rows = min(rows, session.max_batch or rows)
        if not rows_are_independent(bundle, lengths[at : at + rows], lengths[at]):
            rows = 1
        yield slice(at, min(at + rows, len(lengths)))
        at += rows


def calls_of(session: Session, length: int) -> Sequence[slice]:
    """Cut a row of `length` tokens into pieces that give what one call gives."""
    if not reads_in_pieces(session.bundle, length):
        return [slice(0, length)]
    return [slice(at, min(at + _CALL, length)) for at in range(0, length, _CALL)]


def _negative_log_likelihood(
    session: Session, ids: npt.NDArray[np.int64], first: npt.NDArray[np.int64]
) -> float:
    """Sum the negative log-likelihood of tokens first[row], ... of each row of ids [rows, length], each given
    those before it."""
    rows, length = ids.shape
    total = 0.0
    for part, logits in read_rows(session, ids, calls_of(session, length), length):
        for row in range(rows):
            begin = max(part.start, int(first[row]) - 1)
            end = min(part.stop, length - 1)
            if begin < end:
                total += token_costs(
                    logits[row, begin - part.start : end - part.start], ids[row, begin + 1 : end + 1]
                )
    return total


def token_costs(logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]) -> float:
    """Sum of -log softmax(logits)[target], of logits [tokens, vocab], which are spent: float32 terms, float64
    sums.

    Raises:
        NoNumbersError: a logit is NaN or infinite, as where float16 overflows.
    """
    largest = logits.max(-1, keepdims=True)
    if not np.isfinite(largest).all():
        raise NoNumbersError("Logits of the text are no numbers.")
    logits -= largest
    chosen = np.take_along_axis(logits, targets[:, None], -1)[:, 0].astype(np.float64)
    sums = np.exp(logits).sum(-1, dtype=np.float64)
    return float((np.log(sums) - chosen).sum())
