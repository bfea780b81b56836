"""Reading a text: whole, or pieces of what is too large to hold."""

import itertools
import re
from pathlib import Path

import pytest

from doge_export.errors import DogeExportError
from doge_export.evaluate import read_sample, read_text


def test_a_small_text_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("ein Größenmaß\n" * 50, encoding="utf-8")
    assert read_sample(path) == read_text(path) == "ein Größenmaß\n" * 50


@pytest.mark.parametrize("word", ["wörter{:05} ", "文{:05}字"], ids=["blanks", "none"])
def test_of_a_large_text_pieces_from_all_over_it(word: str, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("".join(word.format(number) for number in range(40_000)), encoding="utf-8")
    sample = read_sample(path, 64_000)
    assert 50_000 < len(sample.encode()) <= 64_000 + 63
    numbers = [int(found) for found in re.findall(r"\d{5}", sample)]
    assert numbers == sorted(numbers)
    assert numbers[0] < 700 and numbers[-1] > 39_300, "to both ends"
    assert max(b - a for a, b in itertools.pairwise(numbers)) < 700, "and between them"


def test_what_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"fine \xff\xfe " * 1000)
    for read in (read_text, lambda path: read_sample(path, 4096)):
        with pytest.raises(DogeExportError, match="is not UTF-8"):
            read(path)
    path.write_bytes(b" \n" * 4000)
    for read in (read_text, lambda path: read_sample(path, 4096)):
        with pytest.raises(DogeExportError, match="is empty"):
            read(path)
