"""How far long work is, on stderr: bars for people, lines for logs, nothing with -q."""

import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from doge_export.cli import _progress, _shared
from doge_export.cli._progress import Lines, show_progress


class Terminal:
    """stderr as a terminal would be."""

    def __init__(self) -> None:
        self.written: list[str] = []

    def write(self, text: str) -> int:
        self.written.append(text)
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("terminal", "ci", "quiet", "drawn"),
    [(True, False, False, True), (False, False, False, False), (True, True, False, False),
     (True, False, True, False)],
    ids=["terminal", "pipe", "CI", "quiet"],
)  # fmt: skip
def test_bars_are_for_people_at_a_terminal(
    terminal: bool,
    ci: bool,
    quiet: bool,
    drawn: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CI", raising=False)
    if ci:
        monkeypatch.setenv("CI", "true")
    stderr = Terminal()
    with _shared.logging_on_stderr(quiet=quiet):
        if terminal:
            monkeypatch.setattr(sys, "stderr", stderr)
        with show_progress("Working") as progress:
            progress.planned(2)
            progress()
            progress(stage="still")
    text = "".join(stderr.written)
    assert ("Working: still" in text) == drawn and ("100%" in text) == drawn
    assert bool(text) == drawn
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", ""), "short work has no lines"


class Clock:
    """Time that passes while somebody waits for it; meanwhile `work` goes on, and it ends after `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.now, self.end = 1000.0, 1000.0 + seconds
        self.work: Callable[[float], None] = lambda passed: None

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        for _ in range(int(seconds)):
            self.now += 1
            self.work(self.now - 1000.0)
            if self.now >= self.end:
                return True
        return False


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[Clock, Lines], list[str]]]:
    def run(clock: Clock, lines: Lines) -> list[str]:
        with caplog.at_level(logging.INFO, "doge_export"):
            lines.write(clock.wait)
        assert {record.levelno for record in caplog.records} <= {logging.INFO}
        return caplog.messages

    yield run


def test_lines_come_at_growing_distances(logged: Callable[[Clock, Lines], list[str]]) -> None:
    clock = Clock(3630)
    lines = logged(clock, Lines("Exporting", clock=clock))
    times = ["0:10", "0:20", "0:40", "1:20", "2:20", "3:20"]
    assert lines[: len(times)] == [f"Exporting ({time})" for time in times]
    assert lines[-2:] == ["Exporting (59:20)", "Exporting (1:00:20)"]


@pytest.mark.parametrize("seconds", [0.5, 9, 10])
def test_short_work_has_none(seconds: float, logged: Callable[[Clock, Lines], list[str]]) -> None:
    clock = Clock(seconds)
    assert logged(clock, Lines("Exporting", clock=clock)) == []


def test_a_line_says_the_stage_and_the_share(logged: Callable[[Clock, Lines], list[str]]) -> None:
    clock = Clock(160)
    lines = Lines("Quantizing", clock=clock)

    def work(passed: float) -> None:
        if passed == 5:
            lines(0, "reading the text")
        if passed == 15:
            lines.planned(300)
        if passed > 15:
            lines(3, f"layers.{int(passed) // 40}")

    clock.work = work
    assert logged(clock, lines) == [
        "Quantizing: reading the text (0:10)",
        "Quantizing: layers.0, 5 % (0:20)",
        "Quantizing: layers.1, 25 % (0:40)",
        "Quantizing: layers.2, 65 % (1:20)",
        "Quantizing: layers.3, 100 % (2:20)",  # more than was planned is no more than all
    ]


@pytest.mark.parametrize("quiet", [False, True])
def test_lines_are_written_while_a_stage_is_silent(
    quiet: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To stderr, by a thread of their own, which ends with the work."""
    written = threading.Event()

    class Watched(Lines):
        def line(self) -> str:
            line = super().line()
            if "one stage" in line:
                written.set()
            return line

    monkeypatch.setattr(_progress, "_WAITS", (0.001,))
    monkeypatch.setattr(_progress, "Lines", Watched)
    with _shared.logging_on_stderr(quiet=quiet), show_progress("Working", total=4) as progress:
        progress(2, "one stage")
        assert written.wait(0.05 if quiet else 30) != quiet
    assert "progress" not in [thread.name for thread in threading.enumerate()]
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()  # the first may be written before there is a stage
    assert all(re.fullmatch(r"Working(: one stage)?, (0|50) % \(0:\d\d\)", line) for line in lines)
    assert any(line.startswith("Working: one stage, 50 %") for line in lines) != quiet


def test_an_error_of_the_work_passes() -> None:
    with pytest.raises(KeyboardInterrupt), show_progress("Working"):
        raise KeyboardInterrupt
    assert "progress" not in [thread.name for thread in threading.enumerate()]
