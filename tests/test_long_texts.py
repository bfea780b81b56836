"""Long texts take another call of the tokenizers library: the same ids, and other threads go on meanwhile."""

import random
import sys
import threading
from pathlib import Path

import pytest

from doge_export.core.errors import DogeExportError
from doge_export.core.presets import models_folder
from doge_export.core.tokenizer import Tokenizer
from doge_export.core.tokenizer.core import _LONG
from tests._tokenizers import KINDS, write_kind

PARTS = [
    "the ",
    "cat",
    " ",
    "\n",
    "é",
    "\u0301",
    "😀",
    "\u200d",
    "漢字",
    "<s>",
    "</s>",
    "<bos>",
    "1",
    ".",
    "\t",
    "ﬁ",
    "\x00",
]


def text_of(size: int, seed: int) -> str:
    draw = random.Random(seed)
    text = ""
    while len(text) < size:
        text += draw.choice(PARTS)
    return text


@pytest.mark.parametrize("kind", ["doge-tiny", *KINDS])
def test_their_ids_are_those_of_short_ones(kind: str, tmp_path: Path) -> None:
    folder = models_folder() / kind if kind == "doge-tiny" else write_kind(kind, tmp_path / "kind")
    tokenizer = Tokenizer.load(folder)
    for seed, special in enumerate((True, False) * 5):
        text = text_of(2 * _LONG, seed)
        assert (
            tokenizer.encode(text, special) == tokenizer.backend.encode(text, add_special_tokens=special).ids
        )


def test_half_a_character_in_them_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_kind("byte-level", tmp_path / "kind"))
    with pytest.raises(DogeExportError, match=f"not valid UTF-8 at character {_LONG + 1}"):
        tokenizer.encode("a" * _LONG + "\ud800")


def test_other_threads_go_on_meanwhile() -> None:
    tokenizer = Tokenizer.load(models_folder() / "doge-tiny")
    text = text_of(100_000, 0)
    ready, ran = threading.Event(), threading.Event()

    def other() -> None:
        ready.wait()
        ran.set()

    thread = threading.Thread(target=other)
    thread.start()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # nobody takes the interpreter's lock away: it is let go, or it is held
    try:
        ready.set()
        tokenizer.encode(text)
        assert ran.is_set()
    finally:
        sys.setswitchinterval(before)
        thread.join()
