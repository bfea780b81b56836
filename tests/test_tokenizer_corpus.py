"""A corpus of 1 MB without one difference: ids, text, and chats, of the fixture's tokenizer and of the
authors', against transformers' and the bare `tokenizers` library."""

import random
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from doge_export.presets import models_folder
from doge_export.tokenizer import Tokenizer
from tests.test_tokenizer import AUTHORS

BYTES = 1 << 20
#: First and last code points of scripts, signs and emoji.
_RANGES = (
    *((0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF), (0x590, 0x6FF)),
    *((0x900, 0x97F), (0xE00, 0xE7F), (0x1E00, 0x1EFF), (0x2000, 0x206F), (0x20A0, 0x22FF)),
    *((0x3040, 0x30FF), (0x4E00, 0x4FFF), (0xAC00, 0xADFF), (0x1F300, 0x1F64F)),
)


def corpus() -> list[str]:
    """Paragraphs of English, the source of the standard library, and lines of every script at random."""
    english = (models_folder() / "heldout.txt").read_text("utf-8").split("\n\n")
    code = [
        part
        for path in sorted(Path(random.__file__).parent.glob("*.py"))[:40]
        for part in path.read_text("utf-8").split("\n\n\n")
    ]
    texts, size = [*english], sum(len(text.encode()) for text in english)
    for text in (*code, *_lines()):
        if size >= BYTES:
            break
        texts.append(text)
        size += len(text.encode())
    assert size >= BYTES
    return texts


def _lines() -> Iterator[str]:
    rng = random.Random(0)
    while True:
        low, high = rng.choice(_RANGES)
        words = []
        for _ in range(rng.randrange(1, 30)):
            letters = (chr(rng.randint(low, high)) for _ in range(rng.randrange(1, 9)))
            words.append("".join(letter for letter in letters if unicodedata.category(letter) != "Cs"))
        yield rng.choice((" ", "  ", "\n", "\t", "", "1", ", ")).join(words)


@pytest.fixture(scope="module", params=["fixture", "authors"])
def tokenizers(request: pytest.FixtureRequest) -> tuple[Tokenizer, Any, Any]:
    """Ours, transformers' and the library's of one folder."""
    import tokenizers as library
    from transformers import AutoTokenizer

    folder = models_folder() / "doge-tiny" if request.param == "fixture" else AUTHORS
    if not folder.is_dir():
        pytest.skip("the authors' tokenizer is not here")
    bare = library.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return Tokenizer.load(folder), AutoTokenizer.from_pretrained(str(folder)), bare


def test_ids_and_text(tokenizers: tuple[Tokenizer, Any, Any]) -> None:
    ours, theirs, bare = tokenizers
    texts = corpus()
    expected = theirs(texts, verbose=False)["input_ids"]
    plain = bare.encode_batch(texts, add_special_tokens=False)
    different = 0
    for text, ids, encoding in zip(texts, expected, plain, strict=True):
        given = ours.encode(text)
        different += given != ids
        different += ours.encode(text, add_special_tokens=False) != encoding.ids
        back = theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        different += ours.decode(given) != back
    assert different == 0


def test_chats(tokenizers: tuple[Tokenizer, Any, Any]) -> None:
    ours, theirs, _ = tokenizers
    texts = [text for text in corpus() if text.strip()]
    for at in range(0, min(len(texts), 2000) - 4, 4):
        roles = ("system", "user", "assistant", "user")
        messages = [{"role": role, "content": text} for role, text in zip(roles, texts[at:], strict=False)]
        expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        given = ours.apply_chat_template(messages)
        assert given == expected
        if at % 100 == 0:
            ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)[
                "input_ids"
            ]
            assert ours.encode(given, add_special_tokens=False) == ids
