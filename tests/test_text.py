"""Reading a text: whole, or pieces of what is too large to hold."""

import itertools
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from doge_export.core.errors import DogeExportError
from doge_export.evaluate import read_sample, read_text
from doge_export.evaluate import text as room
from tests.runtime._toy import write_toy_bundle


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


READ = {"whole": read_text, "in pieces": lambda path: read_sample(path, 4096)}


@pytest.mark.parametrize("read", READ.values(), ids=READ)
def test_what_has_no_end_is_no_text(read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for device in ("/dev/zero", "/dev/null"):
        with pytest.raises(DogeExportError, match=f"{device} is a device, not a file"):
            read(Path(device))
    with pytest.raises(DogeExportError, match="is a folder, not a file"):
        read(tmp_path)
    (tmp_path / "zeros").symlink_to("/dev/zero")
    with pytest.raises(DogeExportError, match="zeros is a device"):
        read(tmp_path / "zeros")
    with pytest.raises(DogeExportError, match="There is no text"):
        read(tmp_path / "none")
    monkeypatch.setattr(room, "LONGEST", 1 << 20)
    endless = tmp_path / "endless"
    os.mkfifo(endless)
    with pytest.raises(DogeExportError, match="is empty"):  # nobody writes to it
        read(endless)
    held = os.open(endless, os.O_RDWR)  # does not wait for a reader
    writer = subprocess.Popen(["cat", "/dev/zero"], stdout=held)
    try:
        with pytest.raises(DogeExportError, match=r"endless is longer than 1 MiB\. Give a part of it"):
            read(endless)
    finally:
        writer.kill()
        writer.wait()
        os.close(held)


@pytest.mark.parametrize("read", READ.values(), ids=READ)
def test_a_pipe_is_what_comes_through_it(read, tmp_path: Path) -> None:
    """As a shell's <(...) makes one; what it is from comes late, and in parts."""
    lines = [f"line {number} of a text\n" for number in range(20_000)]
    file = tmp_path / "text.txt"
    file.write_text("".join(lines))
    end, beginning = os.pipe()

    def write() -> None:
        with os.fdopen(beginning, "w") as pipe:
            pipe.writelines(lines)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert read(Path(f"/dev/fd/{end}")) == read(file)
    finally:
        writer.join()
        os.close(end)


def test_a_large_file_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "LONGEST", 1 << 20)
    path = tmp_path / "text.txt"
    path.write_text("word " * (1 << 18))
    with pytest.raises(DogeExportError, match="is longer than 1 MiB"):
        read_text(path)
    assert len(read_sample(path, 4096)) <= 4096 + 63  # of any length


@pytest.mark.parametrize("command", [["generate", "-p", "-"], ["chat"]], ids=str)
def test_stdin_without_end_is_refused(command: list[str], tmp_path: Path) -> None:
    bundle = write_toy_bundle(tmp_path / "b").path
    script = "import sys; from doge_export.cli import main; sys.exit(main())"
    arguments = [sys.executable, "-c", script, command[0], str(bundle), *command[1:]]
    with Path("/dev/zero").open("rb") as zeros:
        ended = subprocess.run(arguments, stdin=zeros, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "stdin is longer than 16 MiB" in ended.stderr and "Traceback" not in ended.stderr
