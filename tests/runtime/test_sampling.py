"""Choosing tokens: the processors against transformers', and the draws against their probabilities."""

import numpy as np
import pytest

from doge_export.runtime import GenerationOptions, sampling
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
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    sampler = Sampler(GenerationOptions(temperature=1.0, seed=7), 1)
    logits = np.log(probabilities).astype(np.float32) + 3
    draws = [sampler.choose(0, logits, [0]) for _ in range(4000)]
    found = np.bincount(draws, minlength=4) / len(draws)
    np.testing.assert_allclose(found, probabilities, atol=0.03)  # 3.8 standard deviations


def test_only_kept_tokens_are_drawn():
    sampler = Sampler(GenerationOptions(temperature=5.0, top_k=3, seed=1), 1)
    logits = _logits(4)
    best = set(np.argsort(logits)[-3:].tolist())
    assert {sampler.choose(0, logits, [0]) for _ in range(200)} == best


def test_a_seed_repeats_the_draws_and_rows_differ():
    def draws(seed: int, row: int, rows: int) -> list[int]:
        sampler = Sampler(GenerationOptions(temperature=2.0, seed=seed), rows)
        return [sampler.choose(row, _logits(9), [0]) for _ in range(20)]

    assert draws(1, 0, 1) == draws(1, 0, 3)  # neighbours change nothing
    assert draws(1, 0, 3) != draws(1, 1, 3)
    assert draws(1, 0, 1) != draws(2, 0, 1)


def _best(logits: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.argsort(-logits, kind="stable")[:count].astype(np.int64)
    return ids, logits[ids]


@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.4, 0.0])
@pytest.mark.parametrize(("temperature", "top_k"), [(0.7, 1), (1.0, 7), (3.0, 50), (0.0, 5)])
@pytest.mark.parametrize("digits", [1, 7], ids=["ties", "no-ties"])
def test_the_best_tokens_are_chosen_from_as_from_all(temperature, top_k, top_p, digits):
    options = GenerationOptions(temperature=temperature, top_k=top_k, top_p=top_p, seed=3)
    assert options.candidates == (1 if temperature == 0 else top_k + 1)
    among, full = Sampler(options, 1), Sampler(options, 1)
    unknown = 0
    for seed in range(100):
        logits = np.round(_logits(seed), digits)
        expected = full.choose(0, logits, [0])
        found = among.choose_among(0, *_best(logits, 64))
        if found is None:
            unknown += 1
            found = among.choose(0, logits, [0])  # draws what the other has drawn
        assert found == expected
    assert unknown < 20


def test_equals_that_may_go_on_are_told():
    options = GenerationOptions(temperature=1.0, top_k=2, seed=0)
    ids = np.array([4, 9, 11], np.int64)
    assert Sampler(options, 1).choose_among(0, ids, np.array([3, 2, 2], np.float32)) is None
    assert Sampler(options, 1).choose_among(0, ids, np.array([3, 2, 1], np.float32)) in (4, 9)
    # apart in the logits, equal once divided
    steps = np.float32(1.9) + np.arange(8, dtype=np.float32) * np.float32(2**-23)
    divided = sampling.temperature(steps, 1.8)
    at = int(np.flatnonzero(np.diff(divided) == 0)[0])
    close = np.array([3, steps[at + 1], steps[at]], np.float32)
    assert close[1] > close[2]
    hot = GenerationOptions(temperature=1.8, top_k=2, seed=0)
    assert Sampler(hot, 1).choose_among(0, ids, close) is None


@pytest.mark.parametrize(
    ("changes", "count"),
    [({}, 1), ({"top_k": 9}, 1), ({"temperature": 1.0}, None), ({"temperature": 1.0, "top_k": 9}, 10),
     ({"repetition_penalty": 1.1}, None), ({"temperature": 1.0, "top_p": 0.5}, None)],
    ids=str,
)  # fmt: skip
def test_how_many_tokens_are_enough(changes, count):
    assert GenerationOptions(**changes).candidates == count
