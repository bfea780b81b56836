"""Files of users: whatever they hold, one sentence or the value that the reference reads."""

import json
import os
import re
import socket
import threading
from pathlib import Path

import pytest

import doge_export
from doge_export.core.errors import DogeExportError
from doge_export.core.json_file import (
    DEEPEST,
    member,
    parse_json,
    read_bytes,
    read_json,
    read_object,
    read_toml,
)

PACKAGE = Path(doge_export.__file__).parent
#: Places that read otherwise, and why they may.
OWN = {
    "core/json_file.py": "the room itself",
    "core/presets.py": "the package's own files",
    "bench/process.py": "answers of a process of ours",
    "bench/serve.py": "requests of a process of ours",
    "bench/machine.py": "the kernel's files",
    "serve/page.py": "the package's own page",
    "runtime/rule_trial.py": "a process of ours",
    "runtime/constraints.py": "what llguidance made of a rule",
    "runtime/scheduling/prefix_files.py": "the native library",
    "export/evidence/score.py": "the package's own text",
    "core/memory.py": "the kernel's files",
    "core/tokenizer/pieces.py": "what the tokenizers library says of its own state",
    "export/tokenizer_source.py": "the same",
    "core/adapters/expressions.py": "a process of ours",
    "evaluate/text.py": "texts of any size, in pieces",
    "validate/rounding_cost.py": "the package's own text",
    "runtime/tensorrt/loading.py": "an engine of any size",
}


def test_nothing_else_reads_what_users_write() -> None:
    reading = re.compile(r"\bjson\.loads?\(|\btomllib\b|\.read_text\(|\.read_bytes\(")
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if reading.search(path.read_text(encoding="utf-8"))
    }
    assert found - set(OWN) == set(), "read it with doge_export.core.json_file"


def _nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"{", "cannot be read as JSON"),
        (b"\xff\xfe{", "is not UTF-8 at byte 1"),
        (b"\xef\xbb\xbf{}", r"byte order mark \(BOM\).* Save it as UTF-8 without one"),
        ("{}".encode("utf-16"), "is not UTF-8"),
        (_nested(DEEPEST + 2).encode(), "nested more than"),
        (_nested(100_000).encode(), "nested more than"),
        (b'{"a": ' + b"1" * 5000 + b"}", "JSON: it has a whole number of more than 4,300 digits"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer.* lfs pull"),
    ],
    ids=["empty", "cut off", "no UTF-8", "BOM", "UTF-16", "deep", "very deep", "long number", "LFS"],
)
def test_what_is_no_json_is_one_sentence(content: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(DogeExportError, match=sentence) as caught:
        read_json(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_json_takes_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": NaN, "b": 1, "b": 2, "c": "\\ud800", "d": ' + _nested(DEEPEST - 1) + "}")
    found = read_object(path)
    assert found["a"] != found["a"] and found["b"] == 2 and found["c"] == "\ud800"
    with pytest.raises(DogeExportError, match="has the key 'b' twice"):
        read_json(path, unique=True)
    assert parse_json("[]".encode("utf-16")) == []  # of a request, which may be of any UTF


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (Path.mkdir, "is a folder, not a file"),
        (os.mkfifo, "is a pipe, not a file"),
        (_socket, "is a socket, not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device, not a file"),
        (lambda path: path.symlink_to(path.name), "symbolic links"),
    ],
    ids=["folder", "pipe", "socket", "endless", "circle"],
)
def test_only_files_are_read(make, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path may not be long
    path = Path("a.json")
    make(path)
    for read in (read_json, read_object, read_toml, read_bytes):
        with pytest.raises(DogeExportError, match=sentence):
            read(path)


def test_a_large_file_and_impossible_names(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.write(b"{")
        file.truncate(1 << 40)  # takes no room
    with pytest.raises(DogeExportError, match="larger than 16 MiB"):
        read_json(path)
    for name in ("a\0b", "\ud800"):
        with pytest.raises(DogeExportError, match="is no name of a file"):
            read_json(tmp_path / name)
    assert read_object(tmp_path / "none.json") == {}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a = " + "[" * 3000, "nested more than"),
        ("a = " + _nested(DEEPEST + 2), "nested more than"),
        (".".join("a" * 3000) + " = 1", "nested more than"),
        ("a = " + "1" * 5000, "TOML: it has a whole number of more than 4,300 digits"),
        ("a = ", "Invalid value"),
        ("\ufeffa = 1", "Invalid"),
    ],
    ids=["deep and cut off", "deep", "long key", "long number", "cut off", "BOM"],
)
def test_what_is_no_toml_is_one_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DogeExportError, match=sentence):
        read_toml(path)


def test_members_are_of_their_kind_and_in_their_range() -> None:
    raw = {"whole": 3, "share": 0.5, "yes": True, "name": "x", "huge": 10**400}
    assert member(raw, "whole", float) == 3 and member(raw, "yes", bool) is True
    for key, kind, least in [
        ("yes", int, None),
        ("share", int, None),
        ("name", list, None),
        ("whole", int, 4),
    ]:
        with pytest.raises(ValueError, match=key):
            member(raw, key, kind, least)
    with pytest.raises(ValueError, match="huge"):
        member(raw, "huge", float, 0, 1)
    with pytest.raises(ValueError, match="not an object"):
        member([], "whole", int)
    with pytest.raises(KeyError):
        member(raw, "none", int)
    assert json.loads(json.dumps(member({"a": {}}, "a", dict))) == {}


def test_a_pipe_that_nobody_writes_to_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    raised: list[Exception] = []

    def read() -> None:
        try:
            read_object(tmp_path / "config.json")
        except DogeExportError as error:
            raised.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(20)
    assert raised
