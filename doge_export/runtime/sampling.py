"""The next token from logits, in numpy, with the processors of transformers in its order."""

__all__ = [
    "Sampler",
    "check_logits",
    "none_left",
    "process",
    "repetition_penalty",
    "temperature",
    "top_k",
    "top_p",
]

import secrets
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from doge_export.core.errors import DogeExportError, NoNumbersError
from doge_export.runtime.options import GenerationOptions
from doge_export.runtime.penalties import Scores, repetition_penalty
from doge_export.runtime.processors import PROCESSORS, Processor, Text, temperature, top_k, top_p
from doge_export.runtime.random_words import exact_gumbel, gumbel, token_words

_SEED_BITS = 2**64 - 1
_SAME_LOGARITHM = 1e-9  # two logarithms of a number are much nearer
_NOTHING_SEEN = np.empty(0, np.int64)
_MIN_DIVISOR, _MAX_DIVISOR = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


def process(
    scores: Scores,
    seen: npt.NDArray[np.int64],
    options: GenerationOptions,
    prompt: int | None = None,
    last: bool = False,
) -> Scores:
    """Apply all processors that `options` ask for to the scores. `seen`: the ids of prompt and text so far,
    without padding, of which the first `prompt` are the prompt's (all where it is not said); `last`: see
    Text."""
    text = Text(seen, len(seen) if prompt is None else prompt, last)
    return _Chain(options).run(scores, text)


class _Chain:
    """The processors that some options ask for.

    They compute in float32 as transformers does, and in the widest type of the processor where float32 is too
    narrow: with temperature 1e-38 scores overflow, and it is the best token that is meant.
    """

    def __init__(self, options: GenerationOptions, without: Sequence[str] = ()) -> None:
        self._options = options
        self._rows: list[Processor] = [
            row for row in PROCESSORS if row.name not in without and row.applies(options)
        ]
        divisors = (options.temperature, options.repetition_penalty, options.encoder_repetition_penalty)
        self._narrow = all(value == 0 or _MIN_DIVISOR <= value <= _MAX_DIVISOR for value in divisors)

    def run(self, scores: Scores, text: Text) -> Scores:
        if not self._rows:
            return scores
        with np.errstate(all="ignore"):
            if self._narrow:
                done = self._apply(scores, text)
                if np.isfinite(done.max()):
                    return done
            return self._apply(scores.astype(np.longdouble), text)

    def _apply(self, scores: Scores, text: Text) -> Scores:
        for row in self._rows:
            scores = row.apply(scores, self._options, text)
        return scores


class Sampler:
    """Chooses tokens for the rows of a batch.

    A draw is the best of score + Gumbel noise, which is a draw from the softmax. The noise of a token is a
    function of the seed, the row and the position alone (docs/reference/operators.md), so that a text does
    not depend on its neighbours, nor on what computes it. The rows here are those from `first` on of all
    that were asked for.
    """

    def __init__(self, options: GenerationOptions, rows: int, first: int = 0) -> None:
        self._options = options
        self._chain, self._all_but_top_p = _Chain(options), _Chain(options, without=("top_p",))
        self._first = first
        self._prompts: dict[int, int] = {}
        self.seed = secrets.randbits(64) if options.seed is None else options.seed & _SEED_BITS

    def choose(
        self,
        row: int,
        logits: Scores,
        seen: Sequence[int],
        left: int | None = None,
        allowed: npt.NDArray[np.int64] | None = None,
    ) -> int:
        """The next token of `row`; the lowest id among equals where decoding is greedy. `seen` are the ids
        before it, at the first call the prompt's; `left`: how many tokens may come yet, this one included;
        `allowed`: the bits of the tokens that may, as a Constraint has them.

        Raises:
            NoNumbersError: a logit is NaN or infinite.
            DogeExportError: no token is left.
        """
        scores: Scores = logits.astype(np.float32, copy=False)
        options = self._options
        if not options.remove_invalid_values:
            check_logits(self._first + row, scores)
        if allowed is not None:
            bits = np.unpackbits(allowed.view(np.uint8), count=scores.size, bitorder="little")
            scores = np.where(bits, scores, np.float32(-np.inf))
        prompt = self._prompts.setdefault(row, len(seen))
        last = left == 1 or (options.max_new_tokens is None and options.max_length == len(seen) + 1)
        scores = self._chain.run(scores, Text(np.asarray(seen, np.int64), prompt, last))
        if not np.isfinite(scores.max()):
            raise none_left(self._first + row, len(seen), allowed is not None)
        if options.greedy:
            return int(np.argmax(scores))
        return self._draw(row, len(seen), np.arange(scores.size), scores)

    def choose_among(
        self, row: int, token_ids: npt.NDArray[np.int64], token_logits: Scores, position: int
    ) -> int | None:
        """The token that `choose` would take from all logits, from the best ones [count], best first, where
        `position` tokens are before it.

        Needs `best_tokens_needed` of them. None where it cannot be known: equals of the k-th best may go on
        behind the last one. Nothing was drawn then.

        Raises:
            NoNumbersError: the best logit is NaN or infinite.
        """
        options = self._options
        check_logits(self._first + row, token_logits, best_alone=True)
        if options.greedy:
            return int(token_ids[0])
        order = np.argsort(token_ids)  # as in all logits: sums and equals depend on the order
        scores = self._all_but_top_p.run(token_logits[order], Text(_NOTHING_SEEN, 0))
        if (scores > -np.inf).all():
            return None
        if options.top_p < 1.0:
            scores = top_p(scores, options.top_p)
        return self._draw(row, position, token_ids[order], scores)

    def _draw(self, row: int, position: int, token_ids: npt.NDArray[np.int64], scores: Scores) -> int:
        """The token with the largest score + noise, of equal ones the lowest id; `token_ids` ascend."""
        kept = np.flatnonzero(scores > -np.inf)
        ids, left = token_ids[kept], scores[kept]
        if left.dtype != np.float32:  # what float64 cannot hold is relative to the best
            left = np.maximum(left - left.max(), np.finfo(np.float64).min)
        words, left = token_words(self.seed, self._first + row, position, ids), left.astype(np.float64)
        sums = left + gumbel(words)
        near = np.flatnonzero(sums >= sums.max() - _SAME_LOGARITHM)
        exact = [float(left[at]) + exact_gumbel(int(words[at])) for at in near]
        return int(ids[near[int(np.argmax(exact))]])


def none_left(row: int, tokens: int, ruled: bool = False) -> DogeExportError:
    """The error where no token is left to choose after so many. `ruled`: the text has rules, too."""
    all_of_them = "all that the rules of the text allow" if ruled else "all of them"
    return DogeExportError(
        f"Row {row}: after {tokens} tokens no token is left to choose.",
        "What forbids tokens (suppress_tokens, bad_words_ids, sequence_bias, no_repeat_ngram_size) forbids "
        f"{all_of_them}: take some out of generation_config.json.",
    )


def check_logits(row: int, logits: Scores, best_alone: bool = False) -> None:
    """Check that the logits, of all tokens or of the best alone, are numbers. -inf says that a token cannot
    come, and may be among them; the kernels say it of NaN, too.

    Raises:
        NoNumbersError: what there is instead.
    """
    if np.isfinite(best := logits.max()):
        return
    if best_alone:
        description = f"the best logit of the next token is {best}, and no number"
    else:
        wrong = ~np.isfinite(logits) if best == -np.inf else ~(logits < np.inf)
        first = int(wrong.argmax())
        description = (
            f"{int(wrong.sum())} of {logits.size} logits of the next token are no numbers; the first is "
        )
        description += f"{logits[first]}, of token {first}"
    raise NoNumbersError(f"Row {row}: {description}.")
