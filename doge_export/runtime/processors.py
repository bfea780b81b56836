"""Processors that change the scores of the next token, a row each, in the order in which transformers does
it. The one that it has not, `count_penalty`, stands behind its own penalty.

Source of what each does: transformers 5, `generation/logits_process.py`; of the order and of when a row
applies: `GenerationMixin._get_logits_processor`. The functions compute in the type of the scores they are
given, and leave those as they are.
"""

__all__ = [
    "PROCESSORS",
    "Processor",
    "Text",
    "bad_words",
    "best_tokens_needed",
    "fewest_tokens",
    "softmax",
    "weights",
]

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from doge_export.runtime.options import GenerationOptions, Ids, SequenceBias
from doge_export.runtime.penalties import Scores, count_penalty, repetition_penalty

_REMOVED = -np.inf
_WEIGHT = 2.0**40
_WEIGHTLESS = -1000.0  # a difference of scores that leaves nothing
_MAX_TOP_H = 100  # transformers looks at no more
_MAX_GROWTH = np.sqrt(np.finfo(np.longdouble).max)  # of a penalty: what it multiplies stays a number


@dataclass(frozen=True)
class Text:
    """The text before the token: `seen` are the ids of prompt and text, without padding, of which the
    first `prompt` are the prompt's. `last`: whether no other token may follow this one."""

    seen: npt.NDArray[np.int64]
    prompt: int
    last: bool = False


@dataclass(frozen=True)
class Processor:
    """`apply(scores, options, text)`, where `applies(options)`. `among_best`: of the best tokens alone it
    makes what it makes of them among all."""

    name: str
    applies: Callable[[GenerationOptions], bool]
    apply: Callable[[Scores, GenerationOptions, Text], Scores]
    among_best: bool = False


def sequence_bias(scores: Scores, biases: SequenceBias, seen: npt.NDArray[np.int64]) -> Scores:
    """Add to the score of the last token of each sequence whose other tokens are the last that were seen.
    What gets infinity leaves nothing to others."""
    added = np.zeros_like(scores)
    for ids, bias in biases:
        before = len(ids) - 1
        if before == 0:
            added[ids[0]] += bias
        elif 0 < before <= seen.size and tuple(seen[seen.size - before :].tolist()) == ids[:-1]:
            added[ids[-1]] += bias
    result: Scores = scores + added
    return forced(result, np.flatnonzero(result == np.inf)) if result.max() == np.inf else result


def no_repeat_ngram(
    scores: Scores, size: int, text: npt.NDArray[np.int64], seen: npt.NDArray[np.int64]
) -> Scores:
    """Remove what would end, after `seen`, a run of `size` tokens that `text` holds."""
    if text.size < size or seen.size < size - 1:
        return scores
    runs = np.lib.stride_tricks.sliding_window_view(text, size)
    same = (runs[:, :-1] == seen[seen.size - size + 1 :]).all(axis=1)
    return _without(scores, runs[same, -1])


def forced(scores: Scores, ids: Ids | npt.NDArray[np.int64]) -> Scores:
    """Leave `ids` alone, all equal."""
    result = np.full_like(scores, _REMOVED)
    result[np.asarray(ids, np.int64)] = 0
    return result


def remove_invalid_values(scores: Scores) -> Scores:
    """Put 0 in the place of NaN, and float32's largest and smallest number in that of the infinite."""
    limits = np.finfo(np.float32)
    highest, lowest = float(limits.max), float(limits.min)
    result: Scores = np.nan_to_num(scores, nan=0.0, posinf=highest, neginf=lowest)
    return result


def exponential_decay_length_penalty(scores: Scores, ids: Ids, factor: float, tokens: float) -> Scores:
    """Raise the scores of `ids`, by their size and factor ** `tokens`, the tokens since it began."""
    scores = scores.copy()
    ends = [token for token in ids if 0 <= token < scores.size]
    growth = min(np.longdouble(factor) ** tokens - 1, _MAX_GROWTH)
    raised = np.abs(scores[ends]) * scores.dtype.type(growth)
    scores[ends] += np.where(np.isfinite(scores[ends]), raised, scores.dtype.type(0))
    return scores


def temperature(scores: Scores, value: float) -> Scores:
    """Divide by the temperature, which is above 0."""
    return scores / scores.dtype.type(value)


def top_h(scores: Scores, share: float) -> Scores:
    """Keep the best scores until the entropy that they have together passes this share of the whole one."""
    best = np.argsort(-scores, kind="stable")[:_MAX_TOP_H]
    logs = _log_softmax(scores[best])
    parts = -np.exp(logs) * np.maximum(logs, np.finfo(scores.dtype).min)
    keep = (_sums(parts) <= parts.sum() * scores.dtype.type(share)) & (np.exp(logs) > 0)
    keep[0] = True
    result = np.full_like(scores, _REMOVED)
    result[best[keep]] = scores[best[keep]]
    return result


def top_k(scores: Scores, k: int) -> Scores:
    """Keep the k best scores, and all that equal the k-th."""
    k = min(k, scores.shape[-1])
    limit = np.partition(scores, -k)[-k]
    return np.where(scores < limit, scores.dtype.type(_REMOVED), scores)


def top_p(scores: Scores, p: float) -> Scores:
    """Keep the fewest best scores whose probabilities sum to p or more; never fewer than one.

    A token stays while those before it, better ones and equals of a lower id, have less than the share p of
    all `weights` together. These are whole numbers, so that no order of adding them up changes anything.
    """
    kept = np.flatnonzero(np.isfinite(scores))  # after top_k there is little left to sort
    if kept.size == 0:
        return scores
    order = kept[np.argsort(-scores[kept], kind="stable")]
    parts = weights(scores[order])
    sums = np.cumsum(parts)
    stays = (sums - parts).astype(np.float64) < p * np.float64(sums[-1])
    stays[0] = True
    return _without(scores, order[~stays])


def min_p(scores: Scores, share: float) -> Scores:
    """Remove what has less than this share of the best one's probability, by `weights`."""
    remove = weights(scores) < share * _WEIGHT
    remove[scores.argmax()] = False
    return np.where(remove, scores.dtype.type(_REMOVED), scores)


def typical_p(scores: Scores, mass: float) -> Scores:
    """Keep those whose surprise is nearest to the expected one, until their probabilities sum to `mass`."""
    logs = _log_softmax(scores)
    entropy = -np.nansum(logs * np.exp(logs))
    away = np.abs(-logs - entropy)
    order = np.argsort(away, kind="stable")
    reached = int((_sums(softmax(scores[order])) < scores.dtype.type(mass)).sum())
    remove = away > away[order[min(reached, order.size - 1)]]
    remove[order[0]] = False
    return np.where(remove, scores.dtype.type(_REMOVED), scores)


def epsilon_cutoff(scores: Scores, epsilon: float) -> Scores:
    """Remove what is less probable than `epsilon`, but not the best."""
    remove = (softmax(scores) < scores.dtype.type(epsilon)) & (scores < scores.max())
    return np.where(remove, scores.dtype.type(_REMOVED), scores)


def eta_cutoff(scores: Scores, epsilon: float) -> Scores:
    """`epsilon_cutoff` by less where the choice is wide: sqrt(epsilon) * exp(-entropy), at most epsilon."""
    logs = _log_softmax(scores)
    entropy = -(np.exp(logs) * np.maximum(logs, np.finfo(scores.dtype).min)).sum()
    return epsilon_cutoff(scores, min(epsilon, float(np.sqrt(epsilon) * np.exp(-entropy))))


def weights(scores: Scores) -> npt.NDArray[np.int64]:
    """Shares of the best score's probability, of scores [n] of which the largest is finite: 2^40 for the best
    one, and exp(score - best) * 2^40 in float64, cut off to a whole number, for any other."""
    below = np.maximum(scores - scores.max(), scores.dtype.type(_WEIGHTLESS))
    shares: npt.NDArray[np.int64] = (np.exp(below.astype(np.float64)) * _WEIGHT).astype(np.int64)
    return shares


def softmax(scores: Scores) -> Scores:
    """Probabilities of scores [n], of which the largest is finite."""
    powers = np.exp(scores - scores.max())
    result: Scores = powers / powers.sum()
    return result


def _log_softmax(scores: Scores) -> Scores:
    shifted = scores - scores.max()
    result: Scores = shifted - np.log(np.exp(shifted).sum())
    return result


def _sums(parts: Scores) -> Scores:
    """Running sums, added up in float64 as torch does, in the type of the parts."""
    result: Scores = np.cumsum(parts, dtype=np.result_type(parts, np.float64)).astype(parts.dtype)
    return result


def _without(scores: Scores, ids: npt.NDArray[np.int64] | Sequence[int]) -> Scores:
    """Remove those of `ids` that are in the vocabulary; -1 and the like are in none."""
    ids = np.asarray(ids, np.int64)
    scores = scores.copy()
    scores[ids[(ids >= 0) & (ids < scores.shape[-1])]] = _REMOVED
    return scores


def _encoder_repetition_penalty(scores: Scores, options: GenerationOptions, text: Text) -> Scores:
    """The prompt stands for an encoder's input where there is no encoder."""
    penalty = options.encoder_repetition_penalty
    inverse = 1 / penalty if scores.dtype == np.float32 else 1 / scores.dtype.type(penalty)
    return repetition_penalty(scores, text.seen[: text.prompt], inverse)


def bad_words(options: GenerationOptions) -> SequenceBias:
    """The options' bad_words_ids as biases. An end of the text is no bad word."""
    ends = {(token,) for token in options.eos_token_ids}
    return tuple((ids, _REMOVED) for ids in options.bad_words_ids if ids not in ends)


def fewest_tokens(options: GenerationOptions) -> int:
    """Return how many tokens a text has at least: its new ones where min_new_tokens says so, else all."""
    return options.min_length if options.min_new_tokens is None else options.min_new_tokens


def _early(options: GenerationOptions, text: Text) -> bool:
    """Whether the text may not end yet."""
    counted = text.seen.size - (0 if options.min_new_tokens is None else text.prompt)
    return counted < fewest_tokens(options)


def _not_yet(scores: Scores, options: GenerationOptions, text: Text) -> Scores:
    return _without(scores, options.eos_token_ids) if _early(options, text) else scores


def _forced_bos(scores: Scores, options: GenerationOptions, text: Text) -> Scores:
    return forced(scores, options.forced_bos_token_id) if text.seen.size == 1 else scores


def _forced_eos(scores: Scores, options: GenerationOptions, text: Text) -> Scores:
    return forced(scores, options.forced_eos_token_id) if text.last else scores


def _decay(scores: Scores, options: GenerationOptions, text: Text) -> Scores:
    assert options.exponential_decay_length_penalty is not None
    start, factor = options.exponential_decay_length_penalty
    tokens = text.seen.size - text.prompt - start
    if tokens <= 0:
        return scores
    return exponential_decay_length_penalty(scores, options.eos_token_ids, factor, tokens)


def _suppress_at_begin(scores: Scores, options: GenerationOptions, text: Text) -> Scores:
    # A forced first token is chosen before the text begins.
    begins = text.prompt + (1 if text.prompt == 1 and options.forced_bos_token_id else 0)
    return _without(scores, options.begin_suppress_tokens) if text.seen.size == begins else scores


#: The rows from `temperature` to `eta_cutoff` are done where tokens are drawn, the others always.
PROCESSORS: tuple[Processor, ...] = (
    Processor(
        "sequence_bias",
        lambda o: bool(o.sequence_bias),
        lambda s, o, t: sequence_bias(s, o.sequence_bias, t.seen),
    ),
    Processor(
        "encoder_repetition_penalty",
        lambda o: o.encoder_repetition_penalty != 1.0,
        _encoder_repetition_penalty,
    ),
    Processor(
        "repetition_penalty",
        lambda o: o.repetition_penalty != 1.0,
        lambda s, o, t: repetition_penalty(s, t.seen, o.repetition_penalty),
    ),
    Processor(
        "count_penalty",
        lambda o: o.frequency_penalty != 0 or o.presence_penalty != 0,
        lambda s, o, t: count_penalty(s, t.seen[t.prompt :], o.frequency_penalty, o.presence_penalty),
    ),
    Processor(
        "no_repeat_ngram_size",
        lambda o: o.no_repeat_ngram_size > 0,
        lambda s, o, t: no_repeat_ngram(s, o.no_repeat_ngram_size, t.seen, t.seen),
    ),
    Processor(
        "encoder_no_repeat_ngram_size",
        lambda o: o.encoder_no_repeat_ngram_size > 0,
        lambda s, o, t: no_repeat_ngram(s, o.encoder_no_repeat_ngram_size, t.seen[: t.prompt], t.seen),
    ),
    Processor(
        "bad_words_ids",
        lambda o: bool(bad_words(o)),
        lambda s, o, t: sequence_bias(s, bad_words(o), t.seen),
    ),
    Processor(
        "min_length",  # and min_new_tokens, which wins over it
        lambda o: bool(o.eos_token_ids) and fewest_tokens(o) > 0,
        _not_yet,
    ),
    Processor("forced_bos_token_id", lambda o: bool(o.forced_bos_token_id), _forced_bos),
    Processor("forced_eos_token_id", lambda o: bool(o.forced_eos_token_id), _forced_eos),
    Processor(
        "remove_invalid_values",
        lambda o: o.remove_invalid_values,
        lambda s, o, t: remove_invalid_values(s),
    ),
    Processor(
        "exponential_decay_length_penalty",
        lambda o: o.exponential_decay_length_penalty is not None,
        _decay,
    ),
    Processor(
        "suppress_tokens",
        lambda o: bool(o.suppress_tokens),
        lambda s, o, t: _without(s, o.suppress_tokens),
    ),
    Processor("begin_suppress_tokens", lambda o: bool(o.begin_suppress_tokens), _suppress_at_begin),
    Processor(
        "temperature",
        lambda o: o.temperature not in (0.0, 1.0),
        lambda s, o, t: temperature(s, o.temperature),
        among_best=True,
    ),
    Processor(
        "top_h",
        lambda o: not o.greedy and o.top_h is not None,
        lambda s, o, t: top_h(s, o.top_h or 1.0),
    ),
    Processor(
        "top_k",
        lambda o: not o.greedy and o.top_k > 0,
        lambda s, o, t: top_k(s, o.top_k),
        among_best=True,
    ),
    Processor(
        "top_p",
        lambda o: not o.greedy and o.top_p < 1.0,
        lambda s, o, t: top_p(s, o.top_p),
        among_best=True,
    ),
    Processor(
        "min_p",
        lambda o: not o.greedy and o.min_p > 0,
        lambda s, o, t: min_p(s, o.min_p),
    ),
    Processor(
        "typical_p",
        lambda o: not o.greedy and o.typical_p < 1.0,
        lambda s, o, t: typical_p(s, o.typical_p),
    ),
    Processor(
        "epsilon_cutoff",
        lambda o: not o.greedy and o.epsilon_cutoff > 0,
        lambda s, o, t: epsilon_cutoff(s, o.epsilon_cutoff),
    ),
    Processor(
        "eta_cutoff",
        lambda o: not o.greedy and o.eta_cutoff > 0,
        lambda s, o, t: eta_cutoff(s, o.eta_cutoff),
    ),
    Processor(
        "renormalize_logits",
        lambda o: o.renormalize_logits,
        lambda s, o, t: _log_softmax(s),
    ),
)


def best_tokens_needed(options: GenerationOptions) -> int | None:
    """How many of the best tokens are enough to choose the next one as from all; None: it takes all.

    Equals of the k-th best stay in the choice, so that one token more must show that they end.
    """
    if options.scored or any(row.applies(options) for row in PROCESSORS if not row.among_best):
        return None
    if options.greedy:
        return 1
    return options.top_k + 1 if options.top_k > 0 else None
