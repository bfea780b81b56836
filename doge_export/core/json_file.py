"""JSON and TOML of users' files, read in one place: such a file may hold anything."""

import json
import os
import re
import stat
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from doge_export.core.errors import DogeExportError
from doge_export.core.file_content import check_content

__all__ = [
    "DEEPEST",
    "LARGEST",
    "check_kind",
    "is_there",
    "member",
    "parse_json",
    "read_bytes",
    "read_json",
    "read_object",
    "read_text",
    "read_toml",
]

#: Bytes of the largest file that is read: a vocabulary's configuration has a few MiB, an index less.
LARGEST = 16 << 20
#: Objects and lists within each other; what reads them after us recurses.
DEEPEST = 200
_LARGEST_TOML = 1 << 18
#: `a.b.c = 1`: tomllib's time grows with the square of such a key.
_LONG_KEY = re.compile(rf"(?<![^\s.=\[\]#])(?:[^\s.=\[\]#]++[ \t]*+\.[ \t]*+){{{DEEPEST}}}")
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_NAMES: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    dict: "an object",
    list: "a list",
}


def is_there(path: Path) -> bool:
    """Whether there is a file at `path`.

    Raises:
        DogeExportError: there is something else, such as a pipe, or a link that leads nowhere.
    """
    try:
        check_kind(path)
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise DogeExportError(
                f"{path} is a link to a file that is not there.", "Put the file in its place, or remove it."
            ) from None
        return False
    except OSError as error:
        raise DogeExportError(f"{path} cannot be read: {error.strerror}.") from None
    return True


def check_kind(path: Path, pipes: bool = False) -> int:
    """The kind of what is at `path`: a regular file's, or of `pipes` one's. A device may never end, and a
    pipe may never begin.

    Raises:
        OSError: there is nothing, or it cannot be looked at.
        DogeExportError: it is of another kind.
    """
    kind = stat.S_IFMT(path.stat().st_mode)
    if kind != stat.S_IFREG and not (pipes and kind == stat.S_IFIFO):
        raise DogeExportError(f"{path} is {_KINDS.get(kind, 'no file')}, not a file.", "Give a file.")
    return kind


def read_bytes(path: Path, limit: int = LARGEST) -> bytes:
    """Read the regular file `path`.

    Raises:
        FileNotFoundError: there is no such file.
        DogeExportError: it is no regular file, larger than `limit` bytes, or cannot be read.
    """
    try:
        check_kind(path)
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            content = file.read(limit + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DogeExportError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:  # a NUL, or half a character that is none
        raise DogeExportError(f"{str(path)!r} is no name of a file: {error}.") from None
    if len(content) > limit:
        raise DogeExportError(
            f"{path} is larger than {limit / (1 << 20):g} MiB, which no file of its kind is.",
            "Give the file that belongs there.",
        )
    return content


def read_text(path: Path, limit: int = LARGEST, kind: str = "text") -> str:
    """Read the file `path` as text; `kind` names its format in the sentence that refuses it.

    Raises:
        FileNotFoundError: there is no such file.
        DogeExportError: as read_bytes; or it is not UTF-8.
    """
    try:
        return read_bytes(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DogeExportError(
            f"{path} cannot be read as {kind}: it is not UTF-8 at byte {error.start + 1}.",
            "Save it as UTF-8.",
        ) from None


def parse_json(text: str | bytes, unique: bool = False) -> Any:
    """Parse a JSON text. Of a key that comes twice the last counts; with `unique` it is an error. NaN and
    Infinity are numbers, as they are to transformers; bytes may be of any UTF.

    Raises:
        ValueError: it is no JSON, or nested more than DEEPEST deep.
    """
    try:
        parsed = json.loads(text, object_pairs_hook=_unique if unique else None)
    except RecursionError:
        raise ValueError(_DEEP) from None
    except ValueError as error:
        raise _without_python(error) from None
    _check_depth(parsed)
    return parsed


def _without_python(error: ValueError) -> ValueError:
    """Return an error in a user's words for a number that is too long to be read; any other as it is."""
    if "set_int_max_str_digits" not in str(error):
        return error
    return ValueError(f"it has a whole number of more than {sys.get_int_max_str_digits():,} digits")


_DEEP = f"it is nested more than {DEEPEST} deep"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"it has the key {twice!r} twice")
    return members


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST + 1):
        level = (
            [
                item
                for outer in level
                for item in (outer.values() if isinstance(outer, dict) else outer)
                if isinstance(item, dict | list)
            ]
            if isinstance(value, dict | list)
            else []
        )
        if not level:
            return
    raise ValueError(_DEEP)


def read_json(path: Path, *, unique: bool = False, limit: int = LARGEST, remedy: str = "") -> Any:
    """Read a JSON file as `parse_json` does.

    Raises:
        FileNotFoundError: there is no such file.
        DogeExportError: it is no JSON, or cannot be read; with the `remedy`, where nothing better is known.
    """
    check_content(path)
    text = read_text(path, limit, "JSON")
    if text.startswith("\ufeff"):
        raise DogeExportError(
            f"{path} cannot be read as JSON: it begins with a byte order mark (BOM), which transformers does "
            "not take.",
            "Save it as UTF-8 without one.",
        )
    try:
        return parse_json(text, unique)
    except ValueError as error:
        raise DogeExportError(f"{path} cannot be read as JSON: {error}.", remedy) from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; empty where there is no such file.

    Raises:
        DogeExportError: the file is there and holds no JSON object.
    """
    try:
        raw = read_json(path)
    except FileNotFoundError:
        return {}
    if not isinstance(raw, dict):
        raise DogeExportError(f"{path} does not hold a JSON object.")
    return raw


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        FileNotFoundError: there is no such file.
        DogeExportError: it is no TOML, or cannot be read.
    """
    text = read_text(path, _LARGEST_TOML, "TOML")
    try:
        if _LONG_KEY.search(text):
            raise ValueError(_DEEP)
        table = tomllib.loads(text)
        _check_depth(table)
    except RecursionError:
        raise DogeExportError(f"{path} cannot be read as TOML: {_DEEP}.") from None
    except ValueError as error:  # TOMLDecodeError is one, and so is a number of 5,000 digits
        raise DogeExportError(f"{path} cannot be read as TOML: {_without_python(error)}.") from None
    return table


def member(raw: Any, key: str, kind: type, minimum: float | None = None, maximum: float | None = None) -> Any:
    """`raw[key]`, once it is known to be of the kind and in the range. A whole number is a number too.

    Raises:
        KeyError: it is not there.
        ValueError: it is of another kind, or out of the range.
    """
    if not isinstance(raw, Mapping):
        raise ValueError(f"where {key} belongs there is {_short(raw)}, not an object")
    value = raw[key]
    kinds: Sequence[type] = (int, float) if kind is float else (kind,)
    if not isinstance(value, tuple(kinds)) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{key} is {_short(value)}, not {_NAMES[kind]}")
    number: Any = value
    if (minimum is not None and not number >= minimum) or (maximum is not None and not number <= maximum):
        bounds = f"at least {minimum}" if maximum is None else f"{minimum} to {maximum}"
        raise ValueError(f"{key} is {_short(value)}, not {bounds}")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
