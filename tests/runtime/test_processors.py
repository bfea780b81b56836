"""Every processor of scores against transformers', in the order and at the times of its `generate`."""

import functools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from doge_export.core.config import DogeConfig
from doge_export.runtime import GenerationOptions
from doge_export.runtime.draws import draws_of
from doge_export.runtime.generation_config import GenerationDefaults
from doge_export.runtime.processors import PROCESSORS, best_tokens_needed
from doge_export.runtime.sampling import process
from doge_export.runtime.settings import SETTINGS
from doge_export.runtime.text_changes import TextChanges
from tests.conftest import SMALL

VOCAB = SMALL["vocab_size"]
CONFIG = DogeConfig.from_dict({"model_type": "doge", **SMALL})
EOS = [1, 7]


@functools.cache
def _model() -> Any:
    import transformers

    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return transformers.DogeForCausalLM(transformers.DogeConfig(vocab_size=VOCAB, **small))


def _theirs(file: dict[str, Any], logits: np.ndarray, seen: list[int], prompt: int, limit: int) -> np.ndarray:
    """What `generate` makes of the scores, `limit` tokens after the prompt at the most."""
    import torch
    from transformers import GenerationConfig

    config = GenerationConfig(**file)
    config.update(**_model().generation_config._get_default_generation_params(), defaults_only=True)
    config.max_length = prompt + limit
    if config.min_new_tokens is not None:
        config.min_length = prompt + config.min_new_tokens
    _model()._prepare_special_tokens(config, True, device="cpu", batch_size=1)
    processors = _model()._get_logits_processor(config, prompt, torch.tensor([seen[:prompt]]))
    return processors(torch.tensor([seen]), torch.tensor(logits)[None])[0].numpy()


def _ours(file: dict[str, Any], logits: np.ndarray, seen: list[int], prompt: int, limit: int) -> np.ndarray:
    options = GenerationDefaults.read(file, CONFIG).changed()
    return process(logits, np.array(seen), options, prompt, last=len(seen) == prompt + limit - 1)


def _same(file: dict[str, Any], seed: int, seen: list[int], prompt: int, limit: int) -> None:
    logits = np.random.default_rng(seed).normal(0, 3, VOCAB).astype(np.float32)
    before = logits.copy()
    ours = _ours(file, logits, seen, prompt, limit)
    np.testing.assert_array_equal(logits, before)
    try:
        theirs = _theirs(file, logits, seen, prompt, limit)
    except ValueError as error:  # of torch's distributions, where every token is removed
        assert "Expected parameter" in str(error)
        assert not np.isfinite(ours.max())
        return
    np.testing.assert_array_equal(np.isneginf(ours), np.isneginf(theirs))
    np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=1e-6)


SEEN = [5, 6, 7, 5, 6, 9, 5, 6]
#: Rows of the table -> settings that make each do something after SEEN, whose first three are the prompt.
CASES: dict[str, list[dict[str, Any]]] = {
    "sequence_bias": [
        {"sequence_bias": [[[5], 2.5], [[5, 6, 8], -1.0], [[6, 9], 3.0], [[6, 4], float("-inf")]]}
    ],
    "encoder_repetition_penalty": [{"encoder_repetition_penalty": value} for value in (0.4, 1.7)],
    "repetition_penalty": [{"repetition_penalty": value} for value in (0.7, 1.3, 5.0)],
    "no_repeat_ngram_size": [{"no_repeat_ngram_size": size} for size in (1, 2, 3, 8, 9, 30)],
    "encoder_no_repeat_ngram_size": [{"encoder_no_repeat_ngram_size": size} for size in (1, 2, 3, 4)],
    "bad_words_ids": [{"bad_words_ids": [[3], [5, 6, 4], [9, 9, 2], [1], [], [6, 250]], "eos_token_id": EOS}],
    "min_length": [
        {"min_length": 9, "eos_token_id": EOS},
        {"min_length": 8, "eos_token_id": EOS},
        {"min_new_tokens": 6, "eos_token_id": 1},
        {"min_new_tokens": 5, "min_length": 100, "eos_token_id": 1},
    ],
    "forced_bos_token_id": [{"forced_bos_token_id": 4}, {"forced_bos_token_id": [4, 9]}],
    "forced_eos_token_id": [{"forced_eos_token_id": 4}, {"forced_eos_token_id": EOS}],
    "remove_invalid_values": [{"remove_invalid_values": True, "bad_words_ids": [[3]]}],
    "exponential_decay_length_penalty": [
        {"exponential_decay_length_penalty": [start, factor], "eos_token_id": EOS}
        for start, factor in ((1, 1.5), (4, 0.3), (5, 1.5), (0, 50.0), (-3, 1.01), (0.5, 2))
    ],
    "suppress_tokens": [{"suppress_tokens": [3, 4, -1, 256, 257]}],
    "begin_suppress_tokens": [
        {"begin_suppress_tokens": [3, 4]},
        {"begin_suppress_tokens": [3, 4], "forced_bos_token_id": 5},
    ],
    "temperature": [{"temperature": value} for value in (0.3, 1.7)],
    "top_h": [{"top_h": value} for value in (0.01, 0.4, 0.9)],
    "top_k": [{"top_k": value} for value in (1, 7, 256, 10**6)],
    "top_p": [{"top_p": value} for value in (0, 0.1, 0.9, 1.5)],
    "min_p": [{"min_p": value} for value in (0, 0.01, 0.3, 1)],
    "typical_p": [{"typical_p": value} for value in (0.05, 0.5, 0.95, 2.0)],
    "epsilon_cutoff": [{"epsilon_cutoff": value} for value in (1e-4, 0.01, 0.9)],
    "eta_cutoff": [{"eta_cutoff": value} for value in (1e-4, 0.01, 0.9)],
    "renormalize_logits": [{"renormalize_logits": True}],
}  # fmt: skip


#: Rows that transformers has not.
OURS = {"frequency_penalty": 0.7, "presence_penalty": -1.2}


def test_every_row_has_its_case() -> None:
    rows = [row.name for row in PROCESSORS]
    assert list(CASES) == [name for name in rows if name != "count_penalty"], "in transformers' order, too"


@pytest.mark.parametrize("temperature", [0.0, 2.0])
@pytest.mark.parametrize("prompt", [2, 5, len(SEEN)])
@pytest.mark.parametrize("asked", [*({name: value} for name, value in OURS.items()), OURS], ids=str)
def test_penalties_are_as_openai_defines_them(
    asked: dict[str, float], prompt: int, temperature: float
) -> None:
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, where c counts what was made; before the
    temperature."""
    logits = np.random.default_rng(1).normal(0, 3, VOCAB).astype(np.float32)
    expected = logits.astype(np.float64)
    for token in range(VOCAB):
        count = SEEN[prompt:].count(token)
        expected[token] -= count * asked.get("frequency_penalty", 0)
        expected[token] -= (count > 0) * asked.get("presence_penalty", 0)
    options = GenerationOptions(temperature=temperature, **asked)  # type: ignore[arg-type]
    found = process(logits, np.array(SEEN), options, prompt)
    np.testing.assert_allclose(found, expected / (temperature or 1), rtol=1e-5, atol=1e-6)
    assert found.dtype == np.float32
    assert best_tokens_needed(options) is None and draws_of(options, 1, 1, 0, VOCAB) is None
    changes = TextChanges(options, VOCAB, prompt)
    for token in SEEN[prompt:]:
        changes.accept(token)
    plain = GenerationOptions(temperature=temperature)
    np.testing.assert_array_equal(process(logits + changes.bias, np.array(SEEN), plain, prompt), found)


@pytest.mark.parametrize("name", CASES)
def test_a_row_is_transformers(name: str) -> None:
    row = next(row for row in PROCESSORS if row.name == name)
    done = False
    for settings_ in CASES[name]:
        drawn = any(SETTINGS[key].sampled for key in settings_)
        file = {"top_k": 0, "do_sample": True, **settings_} if drawn else settings_
        done |= row.applies(GenerationDefaults.read(file, CONFIG).changed())
        for seed, (seen, prompt, limit) in enumerate(((SEEN, 3, 6), (SEEN, 3, 9), (SEEN, 8, 4), ([5], 1, 4),
                                                      ([5, 6], 1, 2), ([5, 6, 5], 2, 9))):  # fmt: skip
            _same(file, seed, seen, prompt, limit)
    assert done


def _ids(rng: random.Random, least: int = 0, most: int = 3) -> list[int]:
    return [rng.randint(0, 12) for _ in range(rng.randint(least, most))]


#: Values away from where rounding decides, and of forced ends one: of equals torch leaves open which is best.
_DRAWN: dict[str, Callable[[random.Random], Any]] = {
    "sequence_bias": lambda r: [[_ids(r, 1), r.uniform(-5, 5)] for _ in range(3)],
    "encoder_repetition_penalty": lambda r: r.uniform(0.2, 4),
    "repetition_penalty": lambda r: r.uniform(0.2, 4),
    "no_repeat_ngram_size": lambda r: r.randint(-1, 5),
    "encoder_no_repeat_ngram_size": lambda r: r.randint(-1, 4),
    "bad_words_ids": lambda r: [_ids(r) for _ in range(3)],
    "min_length": lambda r: r.randint(0, 20),
    "min_new_tokens": lambda r: r.randint(0, 10),
    "forced_bos_token_id": lambda r: r.randint(20, 30),
    "forced_eos_token_id": lambda r: r.randint(20, 30),
    "exponential_decay_length_penalty": lambda r: [r.randint(0, 8), r.uniform(0.5, 2)],
    "suppress_tokens": _ids,
    "begin_suppress_tokens": _ids,
    "temperature": lambda r: r.uniform(0.2, 3),
    "top_h": lambda r: r.uniform(0.05, 0.95),
    "top_k": lambda r: r.randint(0, 60),
    "top_p": lambda r: r.uniform(0.05, 0.99),
    "min_p": lambda r: r.uniform(0, 0.9),
    "typical_p": lambda r: r.uniform(0.05, 0.99),
    "epsilon_cutoff": lambda r: r.uniform(0, 0.5),
    "eta_cutoff": lambda r: r.uniform(0, 0.5),
    "renormalize_logits": lambda r: r.random() < 0.5,
}


@pytest.mark.parametrize("seed", range(300))
def test_all_together_are_generates(seed: int) -> None:
    rng = random.Random(seed)
    share = rng.choice((0.1, 0.3, 1))
    file = {key: draw(rng) for key, draw in _DRAWN.items() if rng.random() < share}
    file |= {"eos_token_id": rng.choice((1, EOS)), "do_sample": rng.random() < 0.7}
    prompt = rng.randint(1, 8)
    seen = _ids(rng, prompt, 14)
    _same(file, seed, seen, prompt, len(seen) - prompt + rng.randint(1, 4))


def test_padding_of_a_batch_does_not_count() -> None:
    """transformers counts the padding in front of a short row as its text; a row here is what it is alone."""
    file = {"min_length": 4, "eos_token_id": 1}
    logits = np.zeros(VOCAB, np.float32)
    assert np.isneginf(_ours(file, logits, [5, 6], 2, 9)[1])
    assert not np.isneginf(_theirs(file, logits, [2, 2, 5, 6], 4, 9)[1])
