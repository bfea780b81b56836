"""Generating: greedy text known beforehand, batches, ends of every kind, both caches."""

from dataclasses import replace

import pytest

from doge_export.core.errors import DogeExportError
from doge_export.core.tokenizer import Tokenizer
from doge_export.runtime import GenerationDefaults, GenerationOptions, Session, Statistics, generate, stream
from doge_export.runtime.stop_strings import RowText
from tests.runtime._toy import BOS, EOS, PAD, VOCAB, continued, next_token, write_tokenizer, write_toy_bundle

PROMPTS = [[BOS, 40, 41, 42], [BOS, 90], [7, 8, 9, 10, 11, 12, 13]]


@pytest.fixture(scope="module", params=["growing", "static"])
def session(request, tmp_path_factory):
    return Session.open(write_toy_bundle(tmp_path_factory.mktemp("bundle"), request.param), threads=1)


@pytest.fixture(scope="module")
def tokenizer(session):
    return Tokenizer.load(session.bundle.path)


def _options(**changes):
    return GenerationOptions(**{"max_new_tokens": 12, "pad_token_id": PAD, **changes})


@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_greedy_tokens_are_the_model_s(session, prompt):
    (completion,) = generate(session, [prompt], _options()).completions
    assert completion.ids == continued(prompt, 12)
    assert completion.finish_reason == "length"
    assert completion.text == ""


def test_rows_of_a_batch_are_as_if_alone(session):
    result = generate(session, PROMPTS, _options())
    assert [completion.ids for completion in result.completions] == [continued(p, 12) for p in PROMPTS]


def test_sampled_rows_do_not_depend_on_when_their_neighbours_end(session):
    options = _options(temperature=30.0, seed=3)
    everything = generate(session, PROMPTS, options).completions
    assert [len(completion.ids) for completion in everything] == [12, 12, 12]
    others = {*everything[0].ids, *everything[2].ids}
    at = next(at for at, token in enumerate(everything[1].ids) if token not in others)
    options = replace(options, eos_token_ids=(everything[1].ids[at],))
    ended = generate(session, PROMPTS, options).completions
    assert ended[1].ids == everything[1].ids[: at + 1]
    assert at < 11
    assert ended[0] == everything[0] and ended[2] == everything[2]


def test_the_penalty_counts_new_tokens_too(session):
    def best(ids: list[int], penalty: float) -> int:
        target = next_token(ids)
        scores = [-1 - abs(token - target) for token in range(VOCAB)]
        scores = [score * penalty if token in ids else score for token, score in enumerate(scores)]
        return scores.index(max(scores))

    ids = list(PROMPTS[0])
    for _ in range(12):
        ids.append(best(ids, 0.1))
    new = ids[len(PROMPTS[0]) :]
    assert len(set(new)) < 12  # a penalty below 1 repeats what was there
    assert generate(session, PROMPTS[:1], _options(repetition_penalty=0.1)).completions[0].ids == new


def test_a_seed_repeats_the_text_and_another_changes_it(session):
    first, again, other = (
        generate(session, PROMPTS, _options(temperature=30.0, seed=seed)).completions for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize("position", [0, 4, 11])
def test_an_end_of_text_token_ends_the_row(session, tokenizer, position):
    expected = continued(PROMPTS[0], 12)
    assert expected.index(expected[position]) == position
    options = _options(eos_token_ids=(VOCAB - 1, expected[position]))
    (completion,) = generate(session, PROMPTS[:1], options, tokenizer).completions
    assert completion.ids == expected[: position + 1]
    assert completion.finish_reason == "eos"
    assert completion.text == tokenizer.decode(expected[:position])


def test_generation_goes_on_until_the_last_row_ends(session):
    expected = [continued(prompt, 12) for prompt in PROMPTS]
    eos = expected[0][5]
    lengths = [row.index(eos) + 1 if eos in row else 12 for row in expected]
    assert len(set(lengths)) > 1
    statistics = Statistics()
    events = list(stream(session, PROMPTS, _options(eos_token_ids=(eos,)), statistics=statistics))
    for row, length in enumerate(lengths):
        mine = [event for event in events if event.row == row]
        assert [event.token for event in mine] == expected[row][:length]
        assert [event.finish_reason for event in mine[:-1]] == [None] * (length - 1)
        assert mine[-1].finish_reason == ("eos" if eos in expected[row] else "length")
    assert statistics.prefill_tokens == sum(map(len, PROMPTS))
    assert statistics.decode_tokens == sum(lengths) - len(PROMPTS)
    assert statistics.prefill_seconds > 0 and statistics.decode_seconds > 0


def test_text_is_what_the_tokens_decode_to(session, tokenizer):
    pieces: dict[int, str] = {0: "", 1: "", 2: ""}

    def collect(row: int, piece: str) -> None:
        pieces[row] += piece

    result = generate(session, PROMPTS, _options(), tokenizer, collect)
    for row, completion in enumerate(result.completions):
        assert completion.text == tokenizer.decode(completion.ids) == pieces[row]
        assert completion.text


def test_text_stops_exactly_before_a_stop_string(session, tokenizer):
    whole = generate(session, PROMPTS[:1], _options(), tokenizer).completions[0]
    cut = len(whole.text) // 2
    stop = whole.text[cut : cut + 2]
    expected = whole.text[: whole.text.index(stop)]
    pieces: list[str] = []
    options = _options(stop=("never there", stop))
    (completion,) = generate(
        session, PROMPTS[:1], options, tokenizer, lambda row, piece: pieces.append(piece)
    ).completions
    assert completion.text == expected == "".join(pieces)
    assert completion.finish_reason == "stop"
    assert completion.ids == whole.ids[: len(completion.ids)]
    assert stop in tokenizer.decode(completion.ids)
    assert len(completion.ids) < len(whole.ids)


def test_without_a_maximum_it_is_a_hundred_or_what_fits(session):
    (completion,) = generate(session, [[5, 6]], _options(max_new_tokens=None)).completions
    capacity = session.new_cache(1).capacity
    count = 100 if capacity is None else capacity - 1
    assert completion.ids == continued([5, 6], count)


def test_max_length_counts_each_rows_own_prompt(session):
    prompts = [PROMPTS[0], PROMPTS[0][:2], PROMPTS[0] + [9] * 3]
    longest = len(prompts[2]) + 2
    options = _options(max_new_tokens=None, max_length=longest, forced_eos_token_id=(77,))
    for row, prompt in zip(generate(session, prompts, options).completions, prompts, strict=True):
        assert row.ids == [*continued(prompt, longest - len(prompt) - 1), 77]
        assert row.finish_reason == "length"
    (completion,) = generate(session, prompts[2:], replace(options, max_new_tokens=5)).completions
    assert completion.ids == [*continued(prompts[2], 4), 77], "max_new_tokens wins"
    with pytest.raises(DogeExportError, match=r"has (\d+) tokens, and max_length.* is \1\. .*--max-new"):
        generate(session, prompts, replace(options, max_length=len(prompts[2])))


def test_the_first_token_without_time_is_the_last(session):
    for row in generate(session, PROMPTS, _options(max_time=0.0)).completions:
        assert len(row.ids) == 1 and row.finish_reason == "length"
    assert len(generate(session, PROMPTS[:1], _options(max_time=1e6)).completions[0].ids) == 12


@pytest.mark.parametrize(
    "bad",
    [
        {"pad_token_id": VOCAB},
        {"pad_token_id": -1},
        {"forced_bos_token_id": (VOCAB,)},
        {"forced_eos_token_id": (-1,)},
        {"bad_words_ids": ((3,), (4, VOCAB))},
        {"sequence_bias": (((-1,), 1.0),)},
    ],
    ids=str,
)
def test_ids_of_options_that_are_no_tokens(session, bad):
    with pytest.raises(DogeExportError, match=rf"^{next(iter(bad))} has the id (-1|{VOCAB}), and"):
        generate(session, PROMPTS, _options(**bad))


@pytest.mark.parametrize("pad", [VOCAB, -1, None, PAD])
def test_a_files_padding_that_is_no_token_is_replaced(session, pad):
    file = {"pad_token_id": pad, "max_new_tokens": 4}
    options = GenerationDefaults.read(file, session.bundle.config).changed()
    result = generate(session, PROMPTS, options)
    assert [completion.ids for completion in result.completions] == [continued(p, 4) for p in PROMPTS]


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [([], "empty"), ([3, VOCAB], f"token id {VOCAB}.*{VOCAB} entries"), ([-1], "token id -1")],
    ids=["empty", "above", "below"],
)
def test_prompts_that_cannot_be_run(session, prompt, sentence):
    with pytest.raises(DogeExportError, match=sentence):
        generate(session, [[1], prompt], _options())


def test_no_prompts_no_completions(session):
    assert generate(session, [], _options()).completions == []


def test_a_stop_string_needs_a_tokenizer(session):
    with pytest.raises(DogeExportError, match="tokenizer"):
        generate(session, [[1]], _options(stop=("x",)))


def test_a_static_cache_is_used_to_its_last_slot_and_refused_beyond(tmp_path):
    session = Session.open(write_toy_bundle(tmp_path, "static", max_length=8), threads=1)
    prompt = [3, 4, 5]
    (completion,) = generate(session, [prompt], _options(max_new_tokens=6)).completions
    assert completion.ids == continued(prompt, 6)
    with pytest.raises(DogeExportError, match=r"need 9 slots.*holds 8.*at most 6 new tokens"):
        generate(session, [prompt], _options(max_new_tokens=7))
    with pytest.raises(DogeExportError, match=r"prompt has 9 tokens.*holds 8.*--max-length 9"):
        generate(session, [[1] * 9], _options(max_new_tokens=1))


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two three", ("two",), "one "),
        ("one two three", ("three", "wo"), "one t"),
        ("aaab", ("aab",), "a"),
        ("ababac", ("abac",), "ab"),
        ("naïve 你好", ("你",), "naïve "),
        ("no stop her", ("here",), "no stop her"),
        ("x", ("x",), ""),
        ("", ("x",), ""),
    ],
)
def test_row_text_holds_back_what_may_begin_a_stop_string(tmp_path, text, stop, expected):
    write_tokenizer(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    row = RowText(tokenizer, stop)
    shown = ""
    for token in tokenizer.encode(text, add_special_tokens=False):
        shown += row.push(token)
        assert expected.startswith(shown)
    assert shown + row.end() == expected
    assert row.stopped == (expected != text)


def test_row_text_shows_what_cannot_begin_a_stop_string_at_once(tmp_path):
    write_tokenizer(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    row = RowText(tokenizer, ("xyz",))
    ids = [tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "qxyq"]
    assert [row.push(token) for token in ids] == ["q", "", "", "xyq"]
    assert row.push(EOS) == ""


def test_row_text_ends_before_the_first_of_two_stop_strings_in_one_token(tmp_path):
    write_tokenizer(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    (token,) = tokenizer.encode("the", add_special_tokens=False)
    assert RowText(tokenizer, ("e", "h")).push(token) == "t"
