"""Choosing tokens: the processors against transformers', and the draws against their probabilities."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doge_export.runtime import GenerationOptions, sampling
from doge_export.runtime.processors import best_tokens_needed, min_p
from doge_export.runtime.random_words import exact_gumbel, gumbel, philox, token_words
from doge_export.runtime.sampling import Sampler, process

VOCAB = 500


def _logits(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, VOCAB).astype(np.float32)


def _theirs(processors, seen, logits):
    import torch

    scores = torch.tensor(logits)[None]
    for processor in processors:
        scores = processor(torch.tensor([seen]), scores)
    return scores[0].numpy()


def _same(ours: np.ndarray, theirs: np.ndarray) -> None:
    np.testing.assert_array_equal(np.isinf(ours), np.isinf(theirs))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("value", [0.3, 0.8, 1.7])
def test_temperature(seed, value):
    from transformers import TemperatureLogitsWarper

    logits = _logits(seed)
    _same(sampling.temperature(logits, value), _theirs([TemperatureLogitsWarper(value)], [0], logits))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 7, VOCAB, VOCAB + 5])
def test_top_k(seed, k):
    from transformers import TopKLogitsWarper

    logits = np.round(_logits(seed), 1)  # with ties, which all stay
    _same(sampling.top_k(logits, k), _theirs([TopKLogitsWarper(k)], [0], logits))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_top_p(seed, p):
    from transformers import TopPLogitsWarper

    logits = _logits(seed)
    _same(sampling.top_p(logits, p), _theirs([TopPLogitsWarper(p)], [0], logits))
    assert np.isfinite(sampling.top_p(logits, p)).sum() < VOCAB


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("penalty", [0.7, 1.3, 5.0])
def test_repetition_penalty(seed, penalty):
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = _logits(seed)
    seen = [3, 3, 3, 17, 499]
    ours = sampling.repetition_penalty(logits, np.array(seen), penalty)
    _same(ours, _theirs([RepetitionPenaltyLogitsProcessor(penalty)], seen, logits))
    assert (ours != logits).sum() == 3


@pytest.mark.parametrize("seed", range(10))
def test_all_together_are_those_of_generate(seed):
    """The order too, which transformers' own generation mixin decides."""
    from transformers import DogeConfig, DogeForCausalLM, GenerationConfig

    settings = {"temperature": 0.6, "top_k": 40, "top_p": 0.8, "repetition_penalty": 1.4}
    config = DogeConfig(vocab_size=VOCAB, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                        num_attention_heads=1)  # fmt: skip
    theirs = GenerationConfig(do_sample=True, **settings)
    processors = DogeForCausalLM(config)._get_logits_processor(theirs, input_ids_seq_length=3)
    assert len(processors) == 4
    seen = [1, 2, int(_logits(seed).argmax())]
    ours = process(_logits(seed), np.array(seen), GenerationOptions(**settings))
    _same(ours, _theirs(processors, seen, _logits(seed)))


def test_processors_leave_their_input_alone():
    logits = _logits(0)
    before = logits.copy()
    options = GenerationOptions(temperature=0.5, top_k=5, top_p=0.5, repetition_penalty=2.0)
    process(logits, np.array([1, 2]), options)
    np.testing.assert_array_equal(logits, before)


def test_greedy_takes_the_lowest_of_equals_and_honours_the_penalty():
    logits = np.array([0, 2, 1.5, 2], np.float32)
    assert Sampler(GenerationOptions(), 1).choose(0, logits, [0]) == 1
    assert Sampler(GenerationOptions(repetition_penalty=1.2), 1).choose(0, logits, [1]) == 3
    # a temperature of 0 leaves top_k and top_p nothing to do
    assert Sampler(GenerationOptions(top_k=2, top_p=0.1), 1).choose(0, logits, [0]) == 1


def test_draws_follow_the_probabilities():
    """Chi-square of 10^6 draws, a position each, of 100 tokens of 10^-5 to 0.2: 99 degrees of freedom."""
    scores = np.random.default_rng(5).normal(0, 2, 100)
    probabilities = np.exp(scores) / np.exp(scores).sum()
    counts = np.zeros(100)
    for at in range(0, 10**6, 1000):
        sums = np.stack([gumbel(token_words(7, 0, at + i, np.arange(100))) for i in range(1000)]) + scores
        counts += np.bincount(sums.argmax(axis=1), minlength=100)
    expected = probabilities * 10**6
    assert expected.min() > 5
    assert ((counts - expected) ** 2 / expected).sum() < 165  # 1 in 30,000 is above
    sampler = Sampler(GenerationOptions(temperature=1.0, seed=7), 1)
    draws = [sampler.choose(0, scores.astype(np.float32), [0] * at) for at in range(1, 4001)]
    sums = np.stack([gumbel(token_words(7, 0, at, np.arange(100))) for at in range(1, 4001)]) + scores
    assert draws == sums.argmax(axis=1).tolist()


def test_the_generator_is_philox():
    """The authors' own examples, of Random123."""

    def words(counter, key):
        found = philox((np.array([counter[0]], np.uint64), *counter[1:]), key)
        return [f"{word:08x}" for word in found[:, 0]]

    most, pi = 0xFFFFFFFF, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert words((0,) * 4, (0, 0)) == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]
    assert words((most,) * 4, (most,) * 2) == ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"]
    assert words(pi, (0xA4093822, 0x299F31D0)) == ["d16cfe09", "94fdcceb", "5001e420", "24126ea1"]


def test_a_word_is_that_of_its_token_whatever_else_is_asked_for():
    every = token_words(2**40 + 3, 5, 2**33, np.arange(1000))
    assert len(np.unique(every)) == 1000
    for some in (np.array([999]), np.array([3, 64, 80, 700]), np.arange(0, 1000, 2)):
        np.testing.assert_array_equal(token_words(2**40 + 3, 5, 2**33, some), every[some])
    counter = (np.array([1 * 16 + 37 % 16], np.uint64), 0, 2, 2**8)  # of token 64 + 37
    assert every[101] == philox(counter, (3, 5))[37 // 16, 0]
    for other in ((3, 5, 2**33), (2**40 + 3, 6, 2**33), (2**40 + 3, 5, 2**33 + 1)):
        assert (token_words(*other, np.arange(1000)) == every).sum() < 3


def test_noise_of_the_first_and_the_last_word_is_a_number():
    words = np.array([0, 1, 2**31, 2**32 - 2, 2**32 - 1], np.uint32)
    noise = gumbel(words)
    assert np.isfinite(noise).all() and (np.diff(noise) > 0).all()
    np.testing.assert_allclose(noise, [exact_gumbel(int(word)) for word in words], rtol=1e-14)
    assert noise[0] > -3.2 and 22 < noise[-1] < 23


def test_only_kept_tokens_are_drawn():
    sampler = Sampler(GenerationOptions(temperature=5.0, top_k=3, seed=1), 1)
    logits = _logits(4)
    best = set(np.argsort(logits)[-3:].tolist())
    assert {sampler.choose(0, logits, [0] * at) for at in range(1, 200)} == best


def test_a_draw_is_a_matter_of_seed_row_and_position():
    def draws(seed: int | None, row: int, rows: int, first: int = 0) -> list[int]:
        sampler = Sampler(GenerationOptions(temperature=2.0, seed=seed), rows, first)
        return [sampler.choose(row, _logits(9), [0] * at) for at in range(1, 21)]

    assert draws(1, 0, 1) == draws(1, 0, 3)  # neighbours change nothing
    assert draws(1, 1, 3) == draws(1, 0, 1, first=1)
    assert draws(1, 0, 3) != draws(1, 1, 3)
    assert draws(1, 0, 1) != draws(2, 0, 1)
    assert draws(1, 0, 1) == draws(2**64 + 1, 0, 1) != draws(2**32 + 1, 0, 1)
    assert draws(None, 0, 1) != draws(None, 0, 1)


@given(st.lists(st.integers(-30, 5), min_size=1, max_size=60), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=300, deadline=None)
def test_what_top_p_and_min_p_keep_is_what_transformers_keeps_beyond_rounding(levels, p, share):
    """Whole numbers make ties. Where the sum is within a rounding of p, either may be right."""
    from transformers import MinPLogitsWarper, TopPLogitsWarper

    scores = np.array(levels, np.float32) / 2
    order = np.argsort(-scores, kind="stable")
    powers = np.exp(scores[order].astype(np.float64) - scores.max())
    before = np.cumsum(powers) - powers
    theirs, ours = _theirs([TopPLogitsWarper(p)], [0], scores), sampling.top_p(scores, p)
    if np.abs(before / powers.sum() - p).min() > 1e-5 and np.abs(before / powers.sum() - 1 + p).min() > 1e-9:
        assert np.isfinite(ours).sum() == np.isfinite(theirs).sum()  # among equals theirs is in no order
        np.testing.assert_array_equal(np.sort(ours), np.sort(theirs))
    if share > 1e-9 and np.abs(powers - share).min() > 1e-6:
        np.testing.assert_array_equal(min_p(scores, share), _theirs([MinPLogitsWarper(share)], [0], scores))


def test_equals_at_the_edge_of_top_p_go_by_their_id():
    np.testing.assert_array_equal(
        np.flatnonzero(np.isfinite(sampling.top_p(np.zeros(6, np.float32), 0.5))), [0, 1, 2]
    )


def _best(logits: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.argsort(-logits, kind="stable")[:count].astype(np.int64)
    return ids, logits[ids]


@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.4, 0.0])
@pytest.mark.parametrize(("temperature", "top_k"), [(0.7, 1), (1.0, 7), (3.0, 50), (0.0, 5)])
@pytest.mark.parametrize("digits", [1, 7], ids=["ties", "no-ties"])
def test_the_best_tokens_are_chosen_from_as_from_all(temperature, top_k, top_p, digits):
    options = GenerationOptions(temperature=temperature, top_k=top_k, top_p=top_p, seed=3)
    assert best_tokens_needed(options) == (1 if temperature == 0 else top_k + 1)
    among, full = Sampler(options, 1), Sampler(options, 1)
    unknown = 0
    for seed in range(100):
        logits = np.round(_logits(seed), digits)
        expected = full.choose(0, logits, [0])
        found = among.choose_among(0, *_best(logits, 64), 1)
        if found is None:
            unknown += 1
            found = among.choose(0, logits, [0])
        assert found == expected
    assert unknown < 20


def test_equals_that_may_go_on_are_told():
    options = GenerationOptions(temperature=1.0, top_k=2, seed=0)
    ids = np.array([4, 9, 11], np.int64)
    assert Sampler(options, 1).choose_among(0, ids, np.array([3, 2, 2], np.float32), 1) is None
    assert Sampler(options, 1).choose_among(0, ids, np.array([3, 2, 1], np.float32), 1) in (4, 9)
    # apart in the logits, equal once divided
    steps = np.float32(1.9) + np.arange(8, dtype=np.float32) * np.float32(2**-23)
    divided = sampling.temperature(steps, 1.8)
    at = int(np.flatnonzero(np.diff(divided) == 0)[0])
    close = np.array([3, steps[at + 1], steps[at]], np.float32)
    assert close[1] > close[2]
    hot = GenerationOptions(temperature=1.8, top_k=2, seed=0)
    assert Sampler(hot, 1).choose_among(0, ids, close, 1) is None


@pytest.mark.parametrize(
    ("changes", "count"),
    [({}, 1), ({"top_k": 9}, 1), ({"temperature": 1.0}, None), ({"temperature": 1.0, "top_k": 9}, 10),
     ({"repetition_penalty": 1.1}, None), ({"temperature": 1.0, "top_p": 0.5}, None)],
    ids=str,
)  # fmt: skip
def test_how_many_tokens_are_enough(changes, count):
    assert best_tokens_needed(GenerationOptions(**changes)) == count
