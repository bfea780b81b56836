"""What a killed process leaves: removed by the next run, or put back where it is the only copy."""

import logging
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from doge_export.core.bundle import Bundle, check_output, mark_checkpoint, new_folder
from doge_export.core.errors import DogeExportError
from doge_export.core.temporary import temporary_folder


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _ours(folder: Path, text: str = "old") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(text)
    mark_checkpoint(folder)
    return folder


def _killed(program: str, *arguments: str) -> None:
    """Run it until it says that it is there, and kill it."""
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "there\n"
        process.send_signal(signal.SIGKILL)


WRITES = """
    import sys, time
    from pathlib import Path
    from doge_export.core.bundle import new_folder
    from doge_export.core.temporary import temporary_folder
    with temporary_folder(), new_folder(Path(sys.argv[1])) as folder:
        (folder / "half").touch()
        print("there", flush=True)
        time.sleep(600)
"""


def test_the_next_run_removes_what_a_killed_one_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, place = tmp_path / "tmp", tmp_path / "place"
    temporary.mkdir()
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)
    (temporary / "doge-export-notes").mkdir()  # somebody's
    _killed(WRITES, str(place / "out"))
    assert len(_names(place)) == 1 and len(_names(temporary)) == 2
    with (
        caplog.at_level(logging.INFO, "doge_export"),
        temporary_folder() as scratch,
        new_folder(place / "other"),
        new_folder(place / "out") as folder,
    ):
        assert _names(temporary) == sorted([scratch.name, "doge-export-notes"])
        assert _names(place) == sorted(
            [folder.name, next(n for n in _names(place) if n.startswith(".other."))]
        )
    assert "which a killed run left half-written" in caplog.text
    assert _names(place) == ["other", "out"] and _names(temporary) == ["doge-export-notes"]


def test_what_is_being_written_is_left_alone(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as first:
        (first / "a").touch()
        with (
            pytest.raises(DogeExportError, match="created by somebody else"),
            new_folder(tmp_path / "out") as second,
        ):
            (second / "b").touch()
            assert (first / "a").exists()
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "b").touch()
        (tmp_path / "out" / "b").unlink()
        (tmp_path / "out").rmdir()
    assert _names(tmp_path / "out") == ["a"]


CUT_OFF = """
    import sys, time
    from pathlib import Path
    from doge_export.core.bundle import new_folder
    rename = Path.rename
    def once(self, target):
        rename(self, target)
        print("there", flush=True)
        time.sleep(600)
    with new_folder(Path(sys.argv[1]), force=True) as folder:
        (folder / "config.json").write_text("new")
        Path.rename = once
"""


def test_the_only_copy_is_put_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    output = _ours(tmp_path / "out")
    _killed(CUT_OFF, str(output))
    assert not output.exists() and len(_names(tmp_path)) == 2
    with pytest.raises(DogeExportError, match=r"does not exist.*cut off.*mv .*\.old "):
        Bundle.open(output)
    with pytest.raises(DogeExportError, match="exists already"):
        check_output(output)
    assert "what it was before is in its place again" in caplog.text
    assert (output / "config.json").read_text() == "old"
    with new_folder(output, force=True) as folder:
        (folder / "a").touch()
    assert _names(tmp_path) == ["out"] and _names(output) == ["a"]


def test_what_was_replaced_is_removed_if_it_is_ours(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _ours(tmp_path / ".out.0123abcd.old")
    theirs = tmp_path / ".out.4567abcd.old"
    _ours(theirs)
    (theirs / "thesis").touch()
    for name in (".out.xyz.partial", ".out.0123abcd.partial.txt", ".outer.0123abcd.partial"):
        (tmp_path / name).mkdir()  # of others
    _ours(tmp_path / "out")
    with new_folder(tmp_path / "out", force=True):
        pass
    assert f"{theirs} is what" in caplog.text and (theirs / "thesis").exists()
    assert not (tmp_path / ".out.0123abcd.old").exists()
    assert len(_names(tmp_path)) == 5


def test_a_link_in_a_leftovers_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis").touch()
    for kind in ("partial", "old"):
        (tmp_path / f".out.0123abcd.{kind}").symlink_to("home", target_is_directory=True)
    with new_folder(tmp_path / "out"):
        pass
    assert _names(tmp_path / "home") == ["thesis"]


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone may give files away")
def test_folders_of_other_users_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    other = tmp_path / "doge-export-0123abcd.tmp"
    other.mkdir()
    os.chown(other, 12345, 12345)
    with temporary_folder():
        assert other.exists()
