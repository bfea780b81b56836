"""generation_kwargs: what lm-eval's `hf` takes gives its text, what it refuses is refused, and so is what we
cannot do, by its name."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from doge_export.core.errors import DogeExportError
from doge_export.evaluate.arguments import generation_arguments
from doge_export.runtime import GenerationDefaults
from tests.evaluate._hf import asked, outcome, reference

#: Taken, each with the text of hf: nothing is drawn.
TAKEN: list[dict[str, Any]] = [
    {"until": "."},
    {"until": [""]},
    {"until": ["b", "ab", " I"]},
    {"max_gen_toks": "5"},
    {"max_gen_toks": 5.7},
    {"max_new_tokens": 4},
    {"max_tokens": 3},
    {"max_completion_tokens": 3},
    {"max_gen_toks": 4, "max_tokens": 9},
    {"max_length": 8},
    {"do_sample": False, "temperature": 0.7},
    {"do_sample": 0, "temperature": 0.7},
    {"temperature": -1.0},
    {"temperature": 0},
    {"top_k": 0, "top_p": 7.0, "min_p": 0.1, "typical_p": 0.5},  # of drawing alone
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 1},
    {"repetition_penalty": None},
    {"eos_token_id": 265},
    {"eos_token_id": None},
    {"num_beams": 1, "early_stopping": True, "length_penalty": 2.0},
    {"no_repeat_ngram_size": 0, "num_return_sequences": 1, "renormalize_logits": True},
    {"anything": None},
    {"min_new_tokens": 3, "eos_token_id": 16},
    {"min_length": 12, "eos_token_id": [16, 265]},
    {"no_repeat_ngram_size": 2, "max_gen_toks": 40},
    {"suppress_tokens": [16, 9999], "begin_suppress_tokens": [87]},
    {"bad_words_ids": [[16], [265, 290]]},
    {"encoder_repetition_penalty": 1.2},
    {"exponential_decay_length_penalty": [3, 1.5]},
    {"forced_eos_token_id": 16},
    {"remove_invalid_values": True, "bos_token_id": 7, "eos_token_id": [9999]},
]

#: Refused by hf, when the first request is run or before -> what we say.
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"until": [3]}, "until has 3"),
    ({"until": None}, "until has None"),
    ({"until": ("a", "b")}, "until has"),
    ({"max_gen_toks": 512}, "max_gen_toks is 512, and the model takes 512"),
    ({"max_gen_toks": 0}, "max_gen_toks is 0"),
    ({"max_gen_toks": "many"}, "generation_kwargs cannot be read"),
    ({"max_gen_toks": float("inf")}, "generation_kwargs cannot be read"),
    ({"max_length": 3}, "leaves no room"),
    ({"temperature": None}, "generation_kwargs cannot be read"),
    ({"do_sample": True}, "do_sample is True and temperature 0.0"),
    ({"do_sample": True, "temperature": 0.0}, "do_sample is True and temperature 0.0"),
    ({"temperature": 2}, "temperature 2,"),
    ({"temperature": "0.7"}, "temperature '0.7'"),
    ({"temperature": 0.7, "top_k": -1}, "top_k is -1, not a whole number of at least 0"),
    ({"temperature": 0.7, "top_k": 5.0}, "top_k is 5.0, not a whole number"),
    ({"temperature": 0.7, "top_p": -0.5}, "top_p is -0.5, not a number from 0 to 1"),
    ({"temperature": 0.7, "top_p": "0.5"}, "top_p is '0.5'"),
    ({"repetition_penalty": 2}, "repetition_penalty is 2, not a number with a decimal point"),
    ({"repetition_penalty": "1.3"}, "repetition_penalty is '1.3'"),
    ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0, not a finite number above 0"),
    ({"num_return_sequences": 2}, "num_return_sequences 2, which is not supported"),
    ({"stop_strings": ["a"]}, "stop_strings"),
    ({"stop": ["a"]}, "has stop, which lm-eval's hf does not take"),
    ({"seed": 1}, "has seed, which lm-eval's hf does not take"),
    ({"pad_token_id": 1}, "has pad_token_id, which lm-eval's hf does not take"),
    ({"use_cache": False}, "has use_cache, which lm-eval's hf does not take"),
    ({"return_dict_in_generate": True}, "has return_dict_in_generate"),
    ({"bad_words_ids": [[9999]]}, "bad_words_ids has 9999"),
    ({"suppress_tokens": "a"}, "suppress_tokens is 'a', not a list of token ids"),
]

#: Done by hf and not by us, and refused by name.
NOT_DONE: list[dict[str, Any]] = [
    {"num_beams": 2},
    {"guidance_scale": 1.5},
    {"prompt_lookup_num_tokens": 3},
    {"penalty_alpha": 0.6},
    {"cache_implementation": "quantized"},
]


def given(changes: dict[str, Any]) -> dict[str, Any]:
    short = any(key.startswith("max_") and key not in ("max_length", "max_time") for key in changes)
    return {"until": [], **({} if short else {"max_gen_toks": 16}), **changes}


@pytest.mark.parametrize("changes", TAKEN, ids=str)
def test_what_hf_takes(changes: dict[str, Any], opened: Callable[..., Any]) -> None:
    requests = asked("generate_until", ("My fellow", given(changes)))
    expected = reference("doge-tiny").generate_until(requests, disable_tqdm=True)
    assert opened("doge-tiny").generate_until(requests) == expected


@pytest.mark.parametrize(("changes", "sentence"), REFUSED, ids=str)
def test_what_hf_refuses(changes: dict[str, Any], sentence: str, opened: Callable[..., Any]) -> None:
    requests = asked("generate_until", ("My fellow", given(changes)))
    assert isinstance(outcome(reference("doge-tiny").generate_until, requests), Exception)
    with pytest.raises(DogeExportError, match=re.escape(sentence)):
        opened("doge-tiny").generate_until(requests)


@pytest.mark.parametrize("changes", NOT_DONE, ids=str)
def test_what_is_not_done(changes: dict[str, Any], opened: Callable[..., Any]) -> None:
    requests = asked("generate_until", ("My fellow", given(changes)))
    requests[0].task_name = "mine"
    name = next(key for key in changes if key != "temperature")
    with pytest.raises(DogeExportError, match=rf"Task mine: .*{name} .* not supported") as caught:
        opened("doge-tiny").check(requests)
    assert caught.value.remedy


def test_what_is_drawn_has_what_the_file_says(bundle: Callable[..., Any]) -> None:
    """temperature 0.8 and top_p 0.9 are of the fixture's file, and transformers takes the best 50 unasked."""
    defaults = GenerationDefaults.of(bundle("doge-tiny"))

    def options(**changes: Any) -> Any:
        return generation_arguments({"until": [], **changes}, defaults, "<|end_of_text|>", 512, 4096).options

    drawn = options(temperature=0.5)
    assert (drawn.temperature, drawn.top_k, drawn.top_p, drawn.greedy) == (0.5, 50, 0.9, False)
    drawn = options(do_sample=True, temperature=1.0, top_k=7, top_p=None, repetition_penalty=1.5)
    assert (drawn.temperature, drawn.top_k, drawn.top_p, drawn.repetition_penalty) == (1.0, 7, 1.0, 1.5)
    drawn = options(do_sample="yes", temperature=0.3, top_k=None, top_p=2.0, min_p=0.0)
    assert (drawn.temperature, drawn.top_k, drawn.top_p) == (0.3, 0, 1.0)
    drawn = options(temperature=0.3, min_p=0.1, typical_p=0.5, epsilon_cutoff=1e-4, min_new_tokens=2)
    assert (drawn.min_p, drawn.typical_p, drawn.epsilon_cutoff, drawn.min_new_tokens) == (0.1, 0.5, 1e-4, 2)
    assert options(do_sample=False, temperature=0.5).greedy and options().greedy
    assert options().eos_token_ids == (1,) and options(eos_token_id=[3, 4]).eos_token_ids == (3, 4)
