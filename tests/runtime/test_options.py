"""Generation options: ranges, and what a bundle's generation_config.json means."""

import logging

import pytest

from doge_export.core.errors import DogeExportError
from doge_export.runtime import GenerationDefaults, GenerationOptions
from tests.runtime._toy import EOS, PAD, write_toy_bundle


def _options(tmp_path, generation, **changes):
    return GenerationDefaults.of(write_toy_bundle(tmp_path, generation=generation)).changed(**changes)


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -0.1},
        {"temperature": float("inf")},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 1.01},
        {"top_p": float("nan")},
        {"min_p": 1.01},
        {"top_h": 0.0},
        {"typical_p": 0.0},
        {"epsilon_cutoff": 1.0},
        {"eta_cutoff": -0.1},
        {"max_time": float("nan")},
        {"encoder_repetition_penalty": 0.0},
        {"exponential_decay_length_penalty": (3, float("inf"))},
        {"exponential_decay_length_penalty": (3, 1.5)},  # and no end of the text
        {"repetition_penalty": 0.0},
        {"max_new_tokens": 0},
        {"seed": -1},
        {"stop": ("",)},
        {"frequency_penalty": float("nan")},
        {"presence_penalty": float("inf")},
        {"logprobs": -1},
    ],
    ids=str,
)
def test_values_out_of_range_are_named(bad):
    with pytest.raises(DogeExportError, match=next(iter(bad))):
        GenerationOptions(**bad)


def test_the_published_cards(tmp_path):
    card = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.0}
    options = _options(tmp_path, {**card, "eos_token_id": [EOS, 6]})
    assert (options.temperature, options.top_p, options.top_k) == (0.8, 0.9, 50)
    assert options.eos_token_ids == (EOS, 6)
    assert not options.greedy


def test_changes_override_the_file(tmp_path):
    file = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "max_new_tokens": 7}
    options = _options(tmp_path, file, temperature=0.0, top_p=None, stop=("x",), max_new_tokens=9)
    assert options.greedy
    assert (options.top_p, options.stop, options.max_new_tokens) == (0.9, ("x",), 9)


@pytest.mark.parametrize(
    ("file", "greedy"),
    [
        (None, True),
        ({}, True),
        ({"eos_token_id": 1}, True),
        ({"temperature": 0.8}, True),  # as transformers 5 takes a file without do_sample
        ({"top_p": 0.9}, True),
        ({"do_sample": True, "temperature": 0.8}, False),
        ({"do_sample": False, "temperature": 0.8}, True),
        ({"do_sample": True}, False),
    ],
    ids=str,
)
def test_when_the_file_means_greedy(tmp_path, file, greedy):
    options = _options(tmp_path, file)
    assert options.greedy is greedy
    assert greedy or options.temperature == file.get("temperature", 1.0)


@pytest.mark.parametrize(
    "change", [{"temperature": 0.5}, {"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.1}], ids=str
)
def test_asking_for_sampling_overrides_a_greedy_file(tmp_path, change):
    options = _options(tmp_path, {"do_sample": False}, **change)
    assert not options.greedy
    assert _options(tmp_path, {"do_sample": False}, **{**change, "temperature": 0.0}).greedy


def test_without_a_file_the_configuration_gives_the_ids(tmp_path):
    options = _options(tmp_path, None)
    assert options.eos_token_ids == (EOS,)
    assert options.pad_token_id == PAD


@pytest.mark.parametrize("bad", [{"temperature": "hot"}, {"eos_token_id": ["a"]}, {"top_k": 1.5}], ids=str)
def test_a_wrong_type_in_the_file_is_named(tmp_path, bad):
    with pytest.raises(DogeExportError, match=next(iter(bad))):
        _options(tmp_path, {"do_sample": True, **bad})


def test_what_is_not_supported_is_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        _options(tmp_path, {"num_beams": 4, "typical_p": 1.0, "bad_words_ids": [[3]], "min_p": None})
    text = caplog.text
    assert "num_beams" in text
    assert not any(key in text for key in ("bad_words_ids", "typical_p", "min_p"))


def test_a_stop_of_the_caller_wins_over_the_files_and_none_leaves_them(tmp_path):
    file = {"stop_strings": ["a", "b"]}
    assert _options(tmp_path, file).stop == _options(tmp_path, file, stop=()).stop == ("a", "b")
    assert _options(tmp_path, file, stop=("c",)).stop == ("c",)
    assert _options(tmp_path, {"stop_strings": "a"}).stop == ("a",)
