"""A text file, or the sentence that says why it is none."""

__all__ = ["SAMPLE", "read_sample", "read_text"]

import codecs
from collections.abc import Callable
from pathlib import Path

from doge_export.errors import DogeExportError

#: Bytes of a text that calibrates: some 20 times what is read of it in tokens.
SAMPLE = 4 << 20
_PIECES = 64


def read_text(path: Path) -> str:
    """The whole file.

    Raises:
        DogeExportError: it is missing, empty, not UTF-8, or cannot be read.
    """
    return _read(path, lambda: path.read_bytes().decode("utf-8"))


def read_sample(path: Path, most: int = SAMPLE) -> str:
    """The whole file, or of one larger than `most` bytes pieces from all over it, in order, that are `most`
    bytes together: a corpus of any size is never in memory. What is not read is not looked at.

    Raises:
        DogeExportError: it is missing, empty, not UTF-8, or cannot be read.
    """
    return _read(path, lambda: _pieces(path, most))


def _pieces(path: Path, most: int) -> str:
    size = path.stat().st_size
    if size <= most:
        return path.read_bytes().decode("utf-8")
    length, found = most // _PIECES, []
    with path.open("rb") as file:
        for number in range(_PIECES):
            file.seek((size - length) * number // (_PIECES - 1))
            piece = file.read(length)
            whole = next((at for at, byte in enumerate(piece) if byte & 0xC0 != 0x80), 0)
            words = codecs.getincrementaldecoder("utf-8")().decode(piece[whole:])  # less a character cut off
            blanks = [at for at in (words.find(" "), words.rfind(" ")) if at >= 0] or [0, len(words)]
            found.append(words[blanks[0] : blanks[1]])
    return "\n".join(found)


def _read(path: Path, read: Callable[[], str]) -> str:
    try:
        text = read()
    except UnicodeDecodeError as error:
        raise DogeExportError(
            f"{path} is not UTF-8 at byte {error.start + 1}.", "Convert it, with iconv for example."
        ) from None
    except FileNotFoundError:
        raise DogeExportError(f"There is no text {path}.") from None
    except OSError as error:
        raise DogeExportError(f"{path} cannot be read: {error.strerror}.") from error
    if not text.strip():
        raise DogeExportError(f"{path} is empty.", "Give a file with text in it.")
    return text
