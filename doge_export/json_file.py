"""JSON and TOML of users' files, read in one place: such a file may hold anything."""

import json
import os
import re
import stat
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from doge_export.errors import DogeExportError
from doge_export.file_content import check_content

__all__ = [
    "DEEPEST",
    "LARGEST",
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


def read_bytes(path: Path, limit: int = LARGEST) -> bytes:
    """What the regular file `path` holds.

    Raises:
        FileNotFoundError: there is no such file.
        DogeExportError: it is no regular file, larger than `limit` bytes, or cannot be read.
    """
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
        if kind != stat.S_IFREG:  # a device may never end, and a pipe may never begin
            raise DogeExportError(f"{path} is {_KINDS.get(kind, 'no file')}, not a file.", "Give a file.")
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
    """The same as text, of a `kind` for the sentence that says that it is none.

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
    """What a JSON text says; of a key that comes twice the last, or with `unique` nothing. NaN and Infinity
    are numbers, as they are to transformers; bytes may be of any UTF.

    Raises:
        ValueError: it is no JSON, or nested more than DEEPEST deep.
    """
    try:
        found = json.loads(text, object_pairs_hook=_unique if unique else None)
    except RecursionError:
        raise ValueError(_DEEP) from None
    _check_depth(found)
    return found


_DEEP = f"it is nested more than {DEEPEST} deep"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"it has the key {twice!r} twice")
    return found


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
    """What the JSON file says, as parse_json has it.

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
    """What a TOML file says.

    Raises:
        FileNotFoundError: there is no such file.
        DogeExportError: it is no TOML, or cannot be read.
    """
    text = read_text(path, _LARGEST_TOML, "TOML")
    try:
        if _LONG_KEY.search(text):
            raise ValueError(_DEEP)
        found = tomllib.loads(text)
        _check_depth(found)
    except RecursionError:
        raise DogeExportError(f"{path} cannot be read as TOML: {_DEEP}.") from None
    except ValueError as error:  # TOMLDecodeError is one, and so is a number of 5,000 digits
        raise DogeExportError(f"{path} cannot be read as TOML: {error}.") from None
    return found


def member(raw: Any, key: str, kind: type, least: float | None = None, most: float | None = None) -> Any:
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
    if (least is not None and not number >= least) or (most is not None and not number <= most):
        bounds = f"at least {least}" if most is None else f"{least} to {most}"
        raise ValueError(f"{key} is {_short(value)}, not {bounds}")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
