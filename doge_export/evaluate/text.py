"""A text file, or the sentence that says why it is none."""

__all__ = ["LONGEST", "SAMPLE", "read_sample", "read_text"]

import codecs
import contextlib
import io
import os
import stat
from collections.abc import Callable, Generator
from pathlib import Path
from typing import BinaryIO

from doge_export.core.errors import DogeExportError
from doge_export.core.json_file import check_kind

#: Bytes of a text that calibrates: some 20 times what is read of it in tokens.
SAMPLE = 4 << 20
#: Bytes of a text that is read whole: more than a day of reading for the smallest model.
LONGEST = 256 << 20
_PIECES = 64
_FIRST = 1 << 16


def read_text(path: Path) -> str:
    """Read the whole file, or what comes through a pipe.

    Raises:
        DogeExportError: it is missing, empty, longer than LONGEST, no text, not UTF-8, or cannot be read.
    """
    return _read(path, lambda file, size: _whole(path, file).decode("utf-8"))


def read_sample(path: Path, max_bytes: int = SAMPLE) -> str:
    """Read a whole file, or, of one of more than `max_bytes`, pieces from all over it in order, of so many
    bytes together: a corpus of any size is never in memory, unless it comes through a pipe. What is not read
    is not looked at.

    Raises:
        DogeExportError: as `read_text`; a file may be of any length.
    """

    def sample(file: BinaryIO, size: int | None) -> str:
        if size is None:
            content = _whole(path, file)
            file, size = io.BytesIO(content), len(content)
        return _pieces(file, size, max_bytes)

    return _read(path, sample)


def _whole(path: Path, file: BinaryIO) -> bytes:
    content = file.read(LONGEST + 1)
    if len(content) > LONGEST:
        raise DogeExportError(f"{path} is longer than {LONGEST >> 20} MiB.", "Give a part of it.")
    return content


def _pieces(file: BinaryIO, size: int, max_bytes: int) -> str:
    if size <= max_bytes:
        return file.read(max_bytes).decode("utf-8")
    length, pieces = max_bytes // _PIECES, []
    for number in range(_PIECES):
        file.seek((size - length) * number // (_PIECES - 1))
        piece = file.read(length)
        whole = next((at for at, byte in enumerate(piece) if byte & 0xC0 != 0x80), 0)
        words = codecs.getincrementaldecoder("utf-8")().decode(piece[whole:])  # less a character cut off
        blanks = [at for at in (words.find(" "), words.rfind(" ")) if at >= 0] or [0, len(words)]
        pieces.append(words[blanks[0] : blanks[1]])
    return "\n".join(pieces)


@contextlib.contextmanager
def _opened(path: Path) -> Generator[tuple[BinaryIO, int | None]]:
    """The file and its size; of a pipe, which a shell's <(...) is, what comes through it."""
    pipe = check_kind(path, pipes=True) == stat.S_IFIFO
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        if pipe:
            yield io.BytesIO(_through(file)), None
        else:
            yield file, os.fstat(file.fileno()).st_size


def _through(pipe: BinaryIO) -> bytes:
    """Read what comes through a pipe that does not block yet, a byte more than LONGEST at most. A pipe that
    nobody writes to is empty, and not waited for."""
    begun = b""
    try:
        begun = os.read(pipe.fileno(), _FIRST)
        if not begun:
            return b""
    except BlockingIOError:  # somebody will write
        pass
    os.set_blocking(pipe.fileno(), True)
    return begun + pipe.read(LONGEST + 1)


def _read(path: Path, read: Callable[[BinaryIO, int | None], str]) -> str:
    try:
        with _opened(path) as (file, size):
            text = read(file, size)
    except UnicodeDecodeError as error:
        raise DogeExportError(
            f"{path} is not UTF-8 at byte {error.start + 1}.", "Convert it, with iconv for example."
        ) from None
    except FileNotFoundError:
        raise DogeExportError(f"There is no text {path}.", "Give a file.") from None
    except OSError as error:
        raise DogeExportError(f"{path} cannot be read: {error.strerror}.") from error
    if not text.strip():
        raise DogeExportError(f"{path} is empty.", "Give a file with text in it.")
    return text
