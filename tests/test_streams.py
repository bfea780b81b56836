"""Text as it comes, and the strings that end it, with tokenizers of every kind: the judges are `decode` of
all the ids, and transformers' StopStringCriteria."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doge_export.core.presets import models_folder
from doge_export.core.tokenizer import TextStream, Tokenizer
from doge_export.runtime.stop_strings import RowText
from tests._tokenizers import KINDS, write_kind
from tests.test_tokenizer import AUTHORS

_FOLDERS = {"fixture": models_folder() / "doge-tiny", "authors": AUTHORS}
_SEEDS = st.integers(0, 2**32)


@pytest.fixture(scope="module", params=[*KINDS, *_FOLDERS])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param in KINDS:
        return write_kind(request.param, tmp_path_factory.mktemp("tokenizer"))
    if not _FOLDERS[request.param].is_dir():
        pytest.skip("the authors' tokenizer is not here")
    return _FOLDERS[request.param]


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


def _counting(tokenizer: Tokenizer, skip: bool = True) -> tuple[TextStream, list[int]]:
    """A stream, and how many ids each of its calls decodes."""
    counted: list[int] = []
    stream = tokenizer.stream(skip)
    decode = stream._decode_ids

    def count(ids: Sequence[int]) -> str:
        counted.append(len(ids))
        return decode(ids)

    stream._decode_ids = count
    return stream, counted


def _ids(tokenizer: Tokenizer, seed: int, length: int) -> list[int]:
    """Random ones, often the same few, bytes of a fallback, special ones, and some of no token."""
    draw = random.Random(seed)
    few = draw.choices(range(tokenizer.vocab_size + 3), k=draw.choice((2, 5, length)))
    fallback = [token for token in range(min(tokenizer.vocab_size, 400)) if tokenizer.pieces.is_byte(token)]
    rare = [*tokenizer.special_ids, *fallback] if draw.random() < 0.5 else few
    return [draw.choice(rare if draw.random() < 0.6 else few) for _ in range(length)]


@settings(max_examples=60)
@given(seed=_SEEDS, length=st.integers(0, 80), skip=st.booleans())
def test_pieces_join_to_the_whole_text(tokenizer: Tokenizer, seed: int, length: int, skip: bool) -> None:
    ids = _ids(tokenizer, seed, length)
    stream = tokenizer.stream(skip)
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.flush() == tokenizer.decode(ids, skip)


def test_a_token_costs_the_same_however_many_came_before(tokenizer: Tokenizer) -> None:
    draw = random.Random(0)
    vocabulary = range(tokenizer.vocab_size)
    bare = [token for token in vocabulary if b"\x80" <= tokenizer.pieces[token][-1:] <= b"\xbf"][:40]
    blank = [token for token in vocabulary if tokenizer.pieces[token].isspace()][:4]
    kinds = ([token] for token in (*bare[:2], *blank[:2], draw.choice(vocabulary)))
    for tokens in (*kinds, bare, list(vocabulary)):
        if not tokens:
            continue
        totals = []
        for length in (400, 800):
            ids = draw.choices(tokens, k=length)
            stream, counted = _counting(tokenizer)
            assert "".join(map(stream.push, ids)) + stream.flush() == tokenizer.decode(ids)
            totals.append(sum(counted))
        assert totals[0] <= 30 * 400 and totals[1] <= 30 * 800, tokens


def test_bytes_of_a_fallback_wait_for_their_end(tmp_path: Path) -> None:
    """Until then a wrong byte behind them would make replacement characters of them all."""
    tokenizer = Tokenizer.load(write_kind("byte fallback", tmp_path))
    good = [tokenizer.backend.token_to_id(f"<0x{byte:02X}>") for byte in "你".encode()]
    bad, letter = (tokenizer.backend.token_to_id(text) for text in ("<0xFF>", "a"))
    for ids, pieces in (
        ([*good, letter], ["", "", "", "你a"]),
        ([*good, bad, letter], ["", "", "", "", "\N{REPLACEMENT CHARACTER}" * 4 + "a"]),
    ):
        stream = tokenizer.stream()
        assert [stream.push(token) for token in ids] == pieces


class Stopper:
    """Where transformers would stop."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(str(folder))

    def __call__(self, prompt: list[int], ids: list[int], stop: list[str]) -> int | None:
        import torch
        from transformers import StopStringCriteria

        criteria = StopStringCriteria(self._tokenizer, stop)
        lengths = range(1, len(ids) + 1)
        return next((n for n in lengths if criteria(torch.tensor([prompt + ids[:n]]), None)[0]), None)


@pytest.fixture(scope="module")
def stopper(folder: Path) -> Stopper:
    if folder == AUTHORS:
        pytest.skip("transformers takes seconds for a stop string in so large a vocabulary")
    return Stopper(folder)


@settings(max_examples=40)
@given(seed=_SEEDS)
def test_a_row_stops_where_transformers_does(tokenizer: Tokenizer, stopper: Stopper, seed: int) -> None:
    draw = random.Random(seed)
    ids = [token for token in _ids(tokenizer, seed, 40) if token in tokenizer.pieces]
    prompt, ids = ids[: draw.randrange(4)], ids[4:]
    whole = tokenizer.decode([*prompt, *ids], False) or "x"
    starts = draw.choices(range(len(whole)), k=draw.choice((1, 1, 2, 4)))
    stop = [whole[at : at + draw.choice((1, 2, 3, 9))] for at in starts]
    stop += draw.choices(["<|end|>", "end|>", "d|><|e", "</s>", stop[0][:-1] or "a", stop[0] + "a"], k=2)
    try:
        expected = stopper(prompt, ids, stop)
    except ValueError:  # it takes no text of which no token can be a part, and no vocabulary without letters
        return
    _check_stop(tokenizer, prompt, ids, stop, expected)


def _check_stop(
    tokenizer: Tokenizer, prompt: list[int], ids: list[int], stop: list[str], expected: int | None
) -> None:
    row, shown = RowText(tokenizer, stop, prompt), ""
    for count, token in enumerate(ids, 1):
        shown += row.push(token)
        whole = tokenizer.decode(ids[:count])
        assert whole.startswith(shown) or not row.stopped
        if row.stopped:
            assert count == expected
            assert row.push(token) == row.end() == ""
            break
    else:
        assert expected is None
        assert shown + row.end() == tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("prompt", "text", "stop", "shown"),
    [
        ("", "the cat<|end|>saw", ["<|end|>"], "the cat"),
        ("", "the<s> cat<|end|>saw", ["end|>"], "the cat"),
        ("", "the cat<|end|>saw", ["t<|e"], "the ca"),
        ("", "the cat<|end|>saw", ["nothing"], "the catsaw"),
        ("", "the cat saw", ["saw", "cat sa"], "the "),
        ("", "the cat saw", ["cat", "cat saw"], "the "),
        ("", "xyxyxz", ["xyxz"], "xy"),
        ("", "a你b", ["你"], "a"),
        ("the ca", "ts", ["cat"], ""),
        ("cat", "ca", ["cat"], "ca"),
    ],
)
def test_a_text_ends_before_what_begins_first(
    tmp_path: Path, prompt: str, text: str, stop: list[str], shown: str
) -> None:
    tokenizer = Tokenizer.load(write_kind("byte-level", tmp_path))
    before, ids = (tokenizer.encode(each, add_special_tokens=False) for each in (prompt, text))
    row, found = RowText(tokenizer, stop, before), ""
    for token in ids:
        found += row.push(token)
        assert shown.startswith(found)
    assert found + row.end() == shown
    assert row.stopped == (stop != ["nothing"] and prompt != "cat")


def test_the_end_of_text_token_can_complete_a_stop_string(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_kind("byte-level", tmp_path))
    *ids, eos = tokenizer.encode("the cat</s>", add_special_tokens=False)
    for stop, text in ((["t</s>"], "the ca"), (["</s>"], "the cat"), (["x</s>"], "the cat")):
        row = RowText(tokenizer, stop)
        assert "".join(map(row.push, ids)) + row.end(eos) == text


def test_a_whole_generation_stops_where_transformers_does() -> None:
    """`generate(stop_strings=...)` of the fixture's model; the same tokens, given to a row."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = models_folder() / "doge-tiny"
    theirs = AutoTokenizer.from_pretrained(str(folder))
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer, prompt = Tokenizer.load(folder), theirs("My fellow citizens", return_tensors="pt")
    size = prompt["input_ids"].shape[1]
    ids = model.generate(**prompt, max_new_tokens=30, do_sample=False)[0].tolist()
    new = tokenizer.decode(ids[size:])
    for stop in ([new[40:44]], [new[9:11], new[30:50]], ["zens" + new[:1]]):
        made = model.generate(
            **prompt, max_new_tokens=30, do_sample=False, stop_strings=stop, tokenizer=theirs
        )
        stopped = made.shape[1] - size
        assert stopped < 30
        _check_stop(tokenizer, ids[:size], ids[size:], stop, stopped)
