"""Files whose content is not what their name says: a Git LFS pointer, an HTML error page, an empty file."""

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from doge_export.core.errors import DogeExportError

__all__ = ["check_content"]

_AGAIN = "Download it again."
_BEGIN = 4096  # bytes that are looked at


@dataclass(frozen=True)
class _Kind:
    """A kind of content that lies in the place of a file. `matches`: the file's first bytes. `right`: the
    kind of file that may well begin so."""

    matches: Callable[[bytes], object]
    what: str
    remedy: str = _AGAIN
    right: str | None = None


def _starts(*magic: bytes) -> Callable[[bytes], bool]:
    return lambda begin: begin.startswith(magic)


def _is_text(begin: bytes) -> bool:
    """Whether it is ASCII that one could read: the first bytes of safetensors are a length, most of them
    zero."""
    return bool(re.fullmatch(rb"[\t\n\r\x20-\x7e]+", begin[:64]))


_KINDS = (
    _Kind(lambda begin: not begin, "is empty"),
    _Kind(
        _starts(b"version https://git-lfs.github.com/spec/"),
        "is a Git LFS pointer, a note of where the file is, and not the file",
        "Fetch it: git -C {folder} lfs pull",
    ),
    _Kind(
        re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html|head|body)\b", re.IGNORECASE).match,
        "is an HTML page, as a server sends it in the place of a file that it refuses",
    ),
    _Kind(
        re.compile(rb"(\xef\xbb\xbf)?\s*<(\?xml|error)\b", re.IGNORECASE).match,
        "is an XML message, as a server sends it in the place of a file that it refuses",
    ),
    _Kind(
        lambda begin: not any(begin) and len(begin) >= 64, "begins with zeros, as an unfinished download does"
    ),
    _Kind(_starts(b"GGUF"), "is a GGUF file", "Give the checkpoint that it was made from."),
    _Kind(
        _starts(b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"),
        "is a pickle, as torch.save writes it, under another name, and pickles are never loaded",
        "Name it pytorch_model.bin, and export says how it is converted.",
        right="pickle",
    ),
    _Kind(
        _starts(b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf"),
        "is packed",
        "Unpack it.",
    ),
    _Kind(_starts(b"\x89HDF"), "is an HDF5 file", "Save the model as safetensors."),
    _Kind(_is_text, "is a text", right="JSON"),
)


def check_content(path: Path, kind: str = "JSON") -> None:
    """See whether the file at `path`, if there is one, may be what its name says: of the `kind` "JSON",
    "safetensors" or "pickle".

    Raises:
        DogeExportError: it is a Git LFS pointer, a page of HTML, empty, or of another format.
    """
    try:
        if not path.is_file():  # a pipe would have us wait
            return
        with path.open("rb") as file:
            begin = file.read(_BEGIN)
    except (OSError, ValueError):  # absent, or who reads it says why it cannot be read
        return
    for content_kind in _KINDS:
        if content_kind.right != kind and content_kind.matches(begin):
            words = begin[:40].decode("ascii", "replace").split("\n")[0].strip()
            seen = f" that begins with {words!r}" if content_kind.right == "JSON" else ""
            not_so = "is not a safetensors file: it " if kind == "safetensors" else ""
            raise DogeExportError(
                f"{path} {not_so}{content_kind.what}{seen}.",
                content_kind.remedy.format(folder=shlex.quote(str(path.parent))),
            )
