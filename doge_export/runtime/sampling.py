"""The next token from logits, in numpy, with the processors of transformers in its order."""

__all__ = ["Sampler", "check_logits", "process", "repetition_penalty", "temperature", "top_k", "top_p"]

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from doge_export.errors import DogeExportError
from doge_export.runtime.options import GenerationOptions
from doge_export.runtime.processors import (
    PROCESSORS,
    Processor,
    Scores,
    Text,
    repetition_penalty,
    softmax,
    temperature,
    top_k,
    top_p,
)

_NOTHING_SEEN = np.empty(0, np.int64)
_LEAST, _MOST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


def process(
    scores: Scores,
    seen: npt.NDArray[np.int64],
    options: GenerationOptions,
    prompt: int | None = None,
    last: bool = False,
) -> Scores:
    """All processors that `options` ask for. `seen`: the ids of prompt and text so far, without padding, of
    which the first `prompt` are the prompt's (all where it is not said); `last`: see Text."""
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
        self._narrow = all(value == 0 or _LEAST <= value <= _MOST for value in divisors)

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

    Every row draws from a generator of its own, so that its text does not depend on its neighbours. The rows
    here are those from `first` on of all that were asked for.
    """

    def __init__(self, options: GenerationOptions, rows: int, first: int = 0) -> None:
        self._options = options
        self._chain, self._all_but_top_p = _Chain(options), _Chain(options, without=("top_p",))
        self._first = first
        self._prompts: dict[int, int] = {}
        seeds = np.random.SeedSequence(options.seed).spawn(first + rows)[first:]
        self._generators = [np.random.default_rng(seed) for seed in seeds]

    def choose(self, row: int, logits: Scores, seen: Sequence[int], left: int | None = None) -> int:
        """The next token of `row`; the lowest id among equals where decoding is greedy. `seen` are the ids
        before it, at the first call the prompt's; `left`: how many tokens may come yet, this one included.

        Raises:
            DogeExportError: a logit is NaN or infinite, or no token is left.
        """
        scores: Scores = logits.astype(np.float32, copy=False)
        options = self._options
        if not options.remove_invalid_values:
            check_logits(self._first + row, scores)
        prompt = self._prompts.setdefault(row, len(seen))
        last = left == 1 or (options.max_new_tokens is None and options.max_length == len(seen) + 1)
        scores = self._chain.run(scores, Text(np.asarray(seen, np.int64), prompt, last))
        if not np.isfinite(scores.max()):
            raise DogeExportError(
                f"Row {self._first + row}: after {len(seen)} tokens no token is left to choose.",
                "What forbids tokens (suppress_tokens, bad_words_ids, sequence_bias, no_repeat_ngram_size) "
                "forbids all of them: take some out of generation_config.json.",
            )
        if options.greedy:
            return int(np.argmax(scores))
        return self._draw(row, scores)

    def choose_among(self, row: int, token_ids: npt.NDArray[np.int64], token_logits: Scores) -> int | None:
        """The token that `choose` would take from all logits, from the best ones [count], best first.

        Needs `options.candidates` of them. None where it cannot be known: equals of the k-th best may go on
        behind the last one. Nothing was drawn then.

        Raises:
            DogeExportError: the best logit is NaN or infinite.
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
        return int(token_ids[order[self._draw(row, scores)]])

    def _draw(self, row: int, scores: Scores) -> int:
        kept = np.flatnonzero(scores > -np.inf)
        total = np.cumsum(softmax(scores[kept]), dtype=np.float64)
        drawn = self._generators[row].random() * total[-1]
        # Rounding may draw the sum itself, which is the last token's that has a probability.
        last = np.searchsorted(total, total[-1])
        return int(kept[min(np.searchsorted(total, drawn, side="right"), last)])


def check_logits(row: int, logits: Scores, best_alone: bool = False) -> None:
    """That the logits, of all tokens or of the best alone, are numbers. -inf says that a token cannot come,
    and may be among them; the kernels say it of NaN, too.

    Raises:
        DogeExportError: what there is instead.
    """
    if np.isfinite(best := logits.max()):
        return
    if best_alone:
        found = f"the best logit of the next token is {best}, and no number"
    else:
        wrong = ~np.isfinite(logits) if best == -np.inf else ~(logits < np.inf)
        first = int(wrong.argmax())
        found = f"{int(wrong.sum())} of {logits.size} logits of the next token are no numbers; the first is "
        found += f"{logits[first]}, of token {first}"
    raise DogeExportError(
        f"Row {row}: {found}.",
        "The model overflows, as float16 does beyond 65504, or its weights are not finite: export it with "
        "--dtype float32 or bfloat16, and see what doge-export validate says.",
    )
