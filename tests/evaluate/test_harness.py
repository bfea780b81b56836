"""Requests of lm-eval answered as its own `hf` model answers them, with transformers' Doge."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from doge_export.core import presets
from doge_export.core.errors import DogeExportError
from doge_export.evaluate.continuations import continuations
from doge_export.runtime import GenerationOptions
from doge_export.validate.backends.deterministic_reference import pinned
from tests.evaluate._hf import (
    TEXT,
    TOLERANCE,
    asked,
    in_float64,
    outcome,
    reference,
    same_answers,
    settled_answer,
)

FIXTURES = ["doge-tiny", "doge-tiny-moe"]  # the second mixes the tokens of a call

PAIRS = [
    ("My fellow", " citizens"),
    ("", "The President"),
    ("The", " President"),  # the tokens of the one before, divided otherwise
    ("We the people of the United ", "States"),  # the blank goes to the continuation
    ("tab\t \n", "\tx"),
    ("  ", " x"),
    ("Question: what is it?\nAnswer:", " a house with many rooms"),
    ("", "<|begin_of_text|>The"),  # the prefix token itself
    ("<|begin_of_text|>My", " fellow"),  # no second one
    ("a<|end_of_text|>b", " c<|end_of_text|>"),
    ("ünï 漢字 ", "🙂 café"),
    (TEXT[:900], TEXT[900:960]),
    (TEXT[:4000], TEXT[4000:4030]),  # beyond 512 tokens: the beginning is lost
]
TEXTS = ["", "x", "<|begin_of_text|>My fellow", "🙂 漢字", TEXT[:700], TEXT[:3000]]
CONTEXTS = ["My fellow", "", "<|begin_of_text|>We", "🙂 漢字", "a<|end_of_text|>b", TEXT[:300], TEXT[:4000]]


@pytest.mark.parametrize("name", FIXTURES)
def test_continuations_are_scored_as_by_hf(name: str, opened: Callable[..., Any]) -> None:
    found = same_answers(opened(name), reference(name), "loglikelihood", *PAIRS)
    assert not all(greedy for _, greedy in found) and found[3][1], "United -> States"


@pytest.mark.parametrize("name", FIXTURES)
def test_whole_texts_are_scored_as_by_hf(name: str, opened: Callable[..., Any]) -> None:
    same_answers(opened(name), reference(name), "loglikelihood_rolling", *((text,) for text in TEXTS))


@pytest.mark.parametrize("name", FIXTURES)
def test_of_a_long_text_hf_rounds_the_sum_and_nothing_else(
    name: str, opened: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hf's own log-probabilities of single tokens: their float32 sums, in steps of up to 2.4e-4, are what
    it answers, and their float64 sum is what it answers in float64."""
    theirs, requests, picked = reference(name), asked("loglikelihood_rolling", (TEXT[:3000],)), []
    gather = torch.gather

    def recorded(*arguments: Any, **options: Any) -> torch.Tensor:
        found = gather(*arguments, **options)
        if arguments[0].shape[-1] == theirs.model.config.vocab_size:
            picked.append(found.squeeze(-1))
        return found

    monkeypatch.setattr(torch, "gather", recorded)
    with pinned():
        (answer,) = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    windows = list(picked)
    assert [len(window[0]) for window in windows[:-1]] == [512] * (len(windows) - 1) and len(windows) > 1
    assert all(window.dtype == torch.float32 for window in windows)
    assert answer == sum(float(window.sum()) for window in windows)
    with pinned(), in_float64(theirs):
        (exact,) = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    assert exact == pytest.approx(sum(float(window.double().sum()) for window in windows), rel=0, abs=1e-4)


@pytest.mark.parametrize("start", [18000, 27000])
def test_keys_that_rounding_alone_ranks_are_all_that_differs(start: int, opened: Callable[..., Any]) -> None:
    """These texts have such keys: hf is 4e-3 and 1e-2 away, until it keeps those that our graph keeps."""
    ours, theirs, given = opened("doge-tiny"), reference("doge-tiny"), (TEXT[start : start + 3000],)
    (found,) = ours.loglikelihood_rolling(asked("loglikelihood_rolling", given))
    settled = settled_answer(ours, theirs, "loglikelihood_rolling", given)
    assert found == pytest.approx(settled, rel=0, abs=TOLERANCE)


@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.parametrize(
    "given",
    [
        {"until": ["\n", "."], "max_gen_toks": 40},
        {"until": [], "max_gen_toks": 12},
        {"until": [" the", "e"], "max_gen_toks": 20},
        {"until": [], "max_length": 30, "repetition_penalty": 1.3},
        {"until": ["\n\n"], "eos_token_id": [1, 265], "max_new_tokens": 24},
    ],
    ids=str,
)
def test_texts_are_those_of_hf(name: str, given: dict[str, Any], opened: Callable[..., Any]) -> None:
    contexts = [context for context in CONTEXTS if "max_length" not in given or len(context) < 50]
    found = same_answers(
        opened(name), reference(name), "generate_until", *((context, dict(given)) for context in contexts)
    )
    assert any(found)


@pytest.mark.parametrize(
    "arguments",
    [
        {"add_bos_token": False},
        {"add_bos_token": True},
        {"prefix_token_id": 5},
        {"max_length": 40},
        {"think_end_token": " the"},
        {"think_end_token": 265},
        {"think_end_token": "265"},
    ],
    ids=str,
)
def test_arguments_of_the_model(arguments: dict[str, Any], opened: Callable[..., Any]) -> None:
    ours, theirs = opened("doge-tiny", **arguments), reference("doge-tiny", **arguments)
    same_answers(ours, theirs, "loglikelihood", PAIRS[0], PAIRS[1], PAIRS[8], PAIRS[11])
    same_answers(ours, theirs, "loglikelihood_rolling", (TEXT[:700],))
    given = {"until": ["\n\n"], "max_gen_toks": 25}
    same_answers(ours, theirs, "generate_until", *((text, given) for text in ("My fellow", TEXT[:700])))


def variant(folder: Path, edits: dict[str, dict[str, Any]]) -> Path:
    """doge-tiny with keys of its JSON files changed, or taken away where they are None."""
    source = presets.models_folder() / "doge-tiny"
    shutil.copytree(source, folder, symlinks=False)
    for name, changes in edits.items():
        values = json.loads((folder / name).read_text(encoding="utf-8")) | changes
        kept = {key: value for key, value in values.items() if value is not None}
        (folder / name).write_text(json.dumps(kept), encoding="utf-8")
    return folder


#: What other checkpoints have -> the files' keys.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "two tokens end a text": {"generation_config.json": {"eos_token_id": [1, 265]}},
    "no token ends a text": {
        "generation_config.json": {"eos_token_id": None},
        "config.json": {"eos_token_id": 265},
    },
    "max_new_tokens of the file win": {"generation_config.json": {"max_new_tokens": 3}},
    "a penalty of the file": {"generation_config.json": {"repetition_penalty": 1.5}},
    "nothing is added to a text": {"tokenizer.json": {"post_processor": None}},
    "no bos_token": {
        "tokenizer.json": {"post_processor": None},
        "tokenizer_config.json": {"bos_token": None},
        "special_tokens_map.json": {"bos_token": None},
    },
    "n_positions": {"config.json": {"n_positions": 100}},
}  # fmt: skip


@pytest.mark.parametrize("edits", VARIANTS.values(), ids=VARIANTS)
def test_other_checkpoints(
    edits: dict[str, dict[str, Any]], opened: Callable[..., Any], tmp_path: Path
) -> None:
    folder = variant(tmp_path / "checkpoint", edits)
    ours, theirs = opened(folder), reference(folder)
    same_answers(ours, theirs, "loglikelihood", PAIRS[0], PAIRS[1], PAIRS[11])
    same_answers(ours, theirs, "loglikelihood_rolling", ("My fellow",))
    given = {"until": ["\n\n"], "max_gen_toks": 40}
    same_answers(ours, theirs, "generate_until", *((text, given) for text in ("My fellow", TEXT[:700])))


@pytest.mark.parametrize(
    ("edits", "sentence"),
    [
        ({"generation_config.json": {"stop_strings": ["a"]}}, "stop_strings"),
        (
            {"tokenizer_config.json": {"eos_token": None}, "special_tokens_map.json": {"eos_token": None}},
            "names no eos_token",
        ),
    ],
)
def test_what_no_text_can_be_generated_with(
    edits: dict[str, dict[str, Any]], sentence: str, opened: Callable[..., Any], tmp_path: Path
) -> None:
    folder = variant(tmp_path / "checkpoint", edits)
    requests = asked("generate_until", ("My fellow", {"until": []}))
    assert isinstance(outcome(reference(folder).generate_until, requests), Exception)
    with pytest.raises(DogeExportError, match=sentence):
        opened(folder).generate_until(requests)


@pytest.mark.parametrize(
    ("kind", "given", "arguments", "sentence"),
    [
        ("loglikelihood", ("My fellow", ""), {}, "no token of its own"),
        ("loglikelihood", ("", ""), {}, "no token of its own"),
        ("loglikelihood", ("", "<|begin_of_text|>"), {}, "no token of its own"),
        ("loglikelihood", ("  ", "x"), {"add_bos_token": False}, "no token of its own"),
        ("loglikelihood", ("My", " fellow citizens" * 300), {}, "the model takes 512"),
        ("loglikelihood", ("My", "x"), {"enable_thinking": True, "think_end_token": "x"}, "generate alone"),
        ("generate_until", ("", {"until": []}), {"add_bos_token": False}, "the context is empty"),
        ("generate_until", (TEXT[:300], {"until": [], "max_length": 20}), {}, "leaves no room"),
    ],
)  # fmt: skip
def test_what_hf_fails_at_is_refused(
    kind: str, given: Any, arguments: dict[str, Any], sentence: str, opened: Callable[..., Any]
) -> None:
    theirs = getattr(reference("doge-tiny", **arguments), kind)
    assert isinstance(outcome(theirs, asked(kind, given)), Exception)
    with pytest.raises(DogeExportError, match=sentence):
        getattr(opened("doge-tiny", **arguments), kind)(asked(kind, given))


def test_arguments_that_cannot_be(opened: Callable[..., Any]) -> None:
    for arguments, sentence in (
        ({"enable_thinking": True}, "needs think_end_token"),
        ({"prefix_token_id": 5000}, "not in the model's vocabulary"),
        ({"max_length": -5}, "max_length is -5"),
    ):
        with pytest.raises(DogeExportError, match=sentence):
            opened("doge-tiny", **arguments)


@pytest.mark.parametrize("name", FIXTURES)
def test_a_request_is_answered_as_it_is_alone(
    name: str, opened: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = opened(name)
    given = {"until": ["\n\n"], "max_gen_toks": 30}
    requests = asked("generate_until", *((TEXT[at : at + at // 3 + 1], given) for at in range(0, 1000, 90)))
    together = lm.generate_until(requests)
    assert together == [lm.generate_until([request])[0] for request in requests]
    pairs = asked("loglikelihood", *((TEXT[at : at + at // 3 + 1], " citizens") for at in range(0, 1000, 90)))
    scored = [score for score, _ in lm.loglikelihood(pairs)]
    assert scored == pytest.approx([lm.loglikelihood([pair])[0][0] for pair in pairs], rel=1e-6)


def test_what_is_drawn_is_drawn_anew_each_time(opened: Callable[..., Any]) -> None:
    """As often as a task has it repeated, and the same the next time."""
    given = {"until": [], "do_sample": True, "temperature": 1.5, "top_k": 0, "top_p": 1.0, "max_gen_toks": 12}
    lm = opened("doge-tiny")
    once = lm.generate_until(asked("generate_until", *[("My fellow", given)] * 4))
    assert len(set(once)) == 4
    assert lm.generate_until(asked("generate_until", *[("My fellow", given)] * 4)) == once


def test_a_text_ends_where_hf_sees_the_end(opened: Callable[..., Any]) -> None:
    """In the last tokens, special ones too; what comes out in the text alone is cut, and does not end it."""
    lm = opened("doge-tiny")
    options = GenerationOptions(max_new_tokens=30)
    context = lm.tok_encode("My fellow")
    whole = continuations(lm._session, lm.tokenizer, [context], options, [])[0]
    assert len(whole) == 30
    for until, tokens in (("", 1), (" report", 1 + whole.index(lm.tok_encode(" report", False)[0]))):
        assert len(continuations(lm._session, lm.tokenizer, [context], options, [until])[0]) == tokens


def test_a_static_cache_is_the_most_that_is_read(
    opened: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    export = {"kv_cache": "static", "max_length": 100}
    with caplog.at_level(logging.WARNING, "doge_export"):
        ours = opened("doge-tiny", export)
    assert "holds 100 tokens" in caplog.text
    theirs = reference("doge-tiny", max_length=100)
    same_answers(ours, theirs, "loglikelihood", (TEXT[:900], TEXT[900:960]))
    same_answers(ours, theirs, "generate_until", (TEXT[:900], {"until": [], "max_gen_toks": 20}))
    with pytest.raises(DogeExportError, match="static cache holds 100"):
        opened("doge-tiny", export, max_length=101)
    with pytest.raises(DogeExportError, match="static cache holds 100"):
        ours.generate_until(
            asked("generate_until", ("x", {"until": [], "max_gen_toks": 5, "max_length": 200}))
        )


CHATS = [
    [{"role": "user", "content": "Who are you?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " A\nB "}],
    [
        *({"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}),
        {"role": "user", "content": "2+2"},
    ],
]
STARTED = [*CHATS[0], {"role": "assistant", "content": "The answer is "}]


def test_chats_are_those_of_hf(opened: Callable[..., Any], tmp_path: Path) -> None:
    strict = variant(tmp_path / "strict", {})
    (strict / "chat_template.jinja").write_text(
        "{% for message in messages %}"
        "{% if message.role == 'system' %}{{ raise_exception('none') }}{% endif %}"
        "{{ bos_token }}{{ message.role }}{% if enable_thinking %}!{% endif %}: {{ message.content | trim }}"
        "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}",
        encoding="utf-8",
    )
    for name, arguments in (
        ("doge-tiny", {}),
        (strict, {}),
        (strict, {"enable_thinking": True, "think_end_token": "x"}),
        (strict, {"chat_template_args": {"bos_token": "#"}}),
    ):
        ours, theirs = opened(name, **arguments), reference_chats(name, arguments)
        for chat in CHATS:
            assert ours.apply_chat_template(chat) == theirs.apply_chat_template(chat)
        expected = theirs.apply_chat_template(STARTED, add_generation_prompt=False)
        assert ours.apply_chat_template(STARTED, add_generation_prompt=False) == expected
        assert ours.chat_template(True) == theirs.chat_template(True)


def reference_chats(name: Any, arguments: dict[str, Any]) -> Any:
    """Not `reference`, whose arguments are kept by their hash."""
    return reference.__wrapped__(name, **arguments)


def test_a_chat_needs_a_template(opened: Callable[..., Any], tmp_path: Path) -> None:
    folder = variant(tmp_path / "checkpoint", {})
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(DogeExportError, match="no chat template"):
        opened(folder).apply_chat_template(CHATS[1])
