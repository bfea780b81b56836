"""Sampling at the ends of what numbers can be: the limit that mathematics gives, or one sentence."""

from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from doge_export.core.errors import DogeExportError
from doge_export.runtime import GenerationOptions
from doge_export.runtime.sampling import Sampler, process

_EPS = float(np.finfo(np.float32).eps)
_FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
_LOGITS = st.lists(_FINITE, min_size=1, max_size=9)
_ABOVE_0 = st.one_of(
    st.floats(min_value=5e-324, max_value=1.7e308),
    st.sampled_from([1e-38, 1e-45, 1e-320, 5e-324, 1.0, 1e39, 1e308]),
)
_SEEN = st.lists(st.integers(0, 8), min_size=1, max_size=5)


def _exact(logits: list[float], seen: list[int], changes: dict[str, float]) -> list[Fraction]:
    """The scores without any rounding: penalty, then temperature."""
    penalty, temperature = (Fraction(changes.get(key, 1.0)) for key in ("repetition_penalty", "temperature"))
    scores = [Fraction(float(np.float32(logit))) for logit in logits]
    for token in {token for token in seen if token < len(scores)}:
        scores[token] = scores[token] * penalty if scores[token] < 0 else scores[token] / penalty
    return [score / temperature for score in scores] if temperature else scores


@settings(max_examples=500)
@given(_LOGITS, _SEEN, st.fixed_dictionaries({}, optional={"repetition_penalty": _ABOVE_0}))
@example([1.0, 2.0], [0, 1], {"repetition_penalty": 1e-45})
@example([3e38, 2e38], [0, 1], {"repetition_penalty": 5e-324})
@example([-1.0, -2.0], [0, 1], {"repetition_penalty": 1e308})
@example([-1.0, -2.0], [0, 1], {"repetition_penalty": 1e-320})
def test_greedy_takes_the_best(logits: list[float], seen: list[int], changes: dict[str, float]) -> None:
    token = Sampler(GenerationOptions(**changes), 1).choose(0, np.array(logits, np.float32), seen)
    exact = _exact(logits, seen, changes)
    # float32 as transformers has it: among what differs by its rounding either is the best
    slack = Fraction(4 * _EPS) * abs(max(exact)) + Fraction(2**-148)
    assert exact[token] >= max(exact) - slack


@settings(max_examples=500)
@given(
    _LOGITS,
    _SEEN,
    st.fixed_dictionaries({"temperature": _ABOVE_0}, optional={"repetition_penalty": _ABOVE_0}),
)
@example([5.0, 4.0, -3.0], [2], {"temperature": 1e-38})
@example([5.0, 4.0, -3.0], [2], {"temperature": 1e-320})
@example([5.0, 4.0, -3.0], [0, 1, 2], {"temperature": 1e300, "repetition_penalty": 1e-300})
@example([3e38, -3e38], [0], {"temperature": 0.5})
@example([1e-45, 0.0], [5], {"temperature": 1e-45})
def test_probabilities_are_the_exact_ones(
    logits: list[float], seen: list[int], changes: dict[str, float]
) -> None:
    options = GenerationOptions(**changes)
    scores = process(np.array(logits, np.float32), np.array(seen), options)
    assert not np.isnan(scores).any() and np.isfinite(scores.max())
    exact = _exact(logits, seen, changes)
    best = max(exact)
    # What float32 leaves of the largest score, where it is computed in float32.
    slack = 4 * _EPS * float(min(abs(best), Fraction(10**30)))
    assume(slack < 1)
    powers = [
        mpmath.exp(mpmath.mpf((score - best).numerator) / (score - best).denominator) for score in exact
    ]
    ours = np.exp(scores - scores.max()).astype(np.float64)
    for power, mine in zip(powers, (ours / ours.sum()).tolist(), strict=True):
        assert abs(float(power / sum(powers)) - mine) <= 2e-6 + 3 * slack
    token = Sampler(options, 1).choose(0, np.array(logits, np.float32), seen)
    assert powers[token] > 0 and ours[token] > 0


_ANY = st.lists(
    st.one_of(
        st.floats(width=32), st.sampled_from([float("inf"), float("-inf"), float("nan"), 1e-45, 3.4e38])
    ),
    min_size=1,
    max_size=9,
).map(lambda values: np.array(values, np.float32))
_OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.one_of(_ABOVE_0, st.just(0.0)),
    "top_k": st.integers(0, 10),
    "top_p": st.floats(0, 1),
    "min_p": st.floats(0, 1),
    "top_h": st.floats(0, 1, exclude_min=True),
    "typical_p": st.floats(0, 1, exclude_min=True),
    "epsilon_cutoff": st.floats(0, 1, exclude_max=True),
    "eta_cutoff": st.floats(0, 1, exclude_max=True),
    "repetition_penalty": _ABOVE_0,
    "encoder_repetition_penalty": _ABOVE_0,
    "no_repeat_ngram_size": st.integers(0, 3),
    "encoder_no_repeat_ngram_size": st.integers(0, 3),
    "sequence_bias": st.just((((1,), 1e300), ((1, 2), -1e300), ((3,), float("inf")))),
    "bad_words_ids": st.just(((1, 2), (3,))),
    "min_length": st.integers(0, 9),
    "suppress_tokens": st.just((0, 500, -1)),
    "begin_suppress_tokens": st.just((1,)),
    "exponential_decay_length_penalty": st.tuples(st.floats(-3, 3), st.floats(-1e308, 1e308)),
    "remove_invalid_values": st.booleans(),
    "renormalize_logits": st.booleans(),
}


@settings(max_examples=1500)
@given(_ANY, _SEEN, st.fixed_dictionaries({"eos_token_ids": st.just((0,))}, optional=_OPTIONS))
def test_a_token_that_can_be_or_one_sentence(
    logits: np.ndarray, seen: list[int], changes: dict[str, Any]
) -> None:
    if logits.size < 4:  # as `stream` has looked
        changes = {
            key: value for key, value in changes.items() if key not in ("sequence_bias", "bad_words_ids")
        }
    options = GenerationOptions(**changes, seed=1)
    before = logits.copy()
    fair = bool(np.isfinite(logits.max()))
    try:
        token = Sampler(options, 1).choose(0, logits, seen)
    except DogeExportError as error:
        assert error.remedy and "\n" not in str(error)
        assert not fair or "no token is left" in str(error)
    else:
        assert 0 <= token < logits.size
        assert fair or options.remove_invalid_values
        assert fair is False or logits[token] > -np.inf or options.remove_invalid_values
    np.testing.assert_array_equal(logits, before)


@settings(max_examples=500)
@given(
    st.lists(_FINITE, min_size=12, max_size=12),
    st.integers(1, 6),
    st.one_of(_ABOVE_0, st.just(1.0)),
    st.floats(0, 1),
)
def test_the_best_tokens_are_enough_there_too(
    values: list[float], top_k: int, temperature: float, top_p: float
) -> None:
    options = GenerationOptions(temperature=temperature, top_k=top_k, top_p=top_p, seed=3)
    logits = np.array(values, np.float32)
    ids = np.argsort(-logits, kind="stable")[: top_k + 2].astype(np.int64)
    found = Sampler(options, 1).choose_among(0, ids, logits[ids], 1)
    assert found is None or found == Sampler(options, 1).choose(0, logits, [0])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("changes", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 2}], ids=str)
def test_which_logit_is_not_finite_is_said(value: float, changes: dict[str, Any]) -> None:
    sampler, every = Sampler(GenerationOptions(**changes), 8), np.full(5, value, np.float32)
    with pytest.raises(
        DogeExportError, match=r"^Row 7: 5 of 5 logits .*the first is \S+, of token 0\..*overflow"
    ):
        sampler.choose(7, every, [1])
    if value != float("-inf"):
        one = np.array([0, 1, value, 3, 4], np.float32)
        with pytest.raises(DogeExportError, match=rf"^Row 7: 1 of 5 .*the first is {value}, of token 2\."):
            sampler.choose(7, one, [1])
    if changes:
        with pytest.raises(DogeExportError, match=r"^Row 7: the best logit of the next token is \S+, and no"):
            sampler.choose_among(7, np.array([9, 4, 6]), np.full(3, value, np.float32), 1)


def test_a_token_that_cannot_come_is_none_of_them() -> None:
    logits = np.array([-np.inf, 1, -np.inf], np.float32)
    for temperature in (0.0, 1.0, 1e-320, 1e300):
        assert Sampler(GenerationOptions(temperature=temperature), 1).choose(0, logits, [1]) == 1


def test_an_infinite_bias_forces() -> None:
    bias = (((1,), float("inf")), ((9, 2), float("inf")), ((0,), float("-inf")))
    for temperature in (0.0, 1.0, 1e-320):
        sampler = Sampler(GenerationOptions(temperature=temperature, top_p=0.5, sequence_bias=bias), 1)
        assert sampler.choose(0, np.arange(5, dtype=np.float32), [3]) == 1
        assert sampler.choose(0, np.arange(5, dtype=np.float32), [9]) in (1, 2)


def test_what_forbids_all_tokens_is_said() -> None:
    for temperature in (0.0, 1.0):
        options = GenerationOptions(temperature=temperature, suppress_tokens=(0, 1, 2))
        with pytest.raises(DogeExportError, match=r"Row 0: after 1 tokens no token is left.*suppress_tokens"):
            Sampler(options, 1).choose(0, np.zeros(3, np.float32), [1])
