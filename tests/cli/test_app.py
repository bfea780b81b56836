"""The command group and what stands around every command: help, errors, exit codes, signals, output."""

import contextlib
import errno
import json
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from doge_export.cli import _shared, app, main
from doge_export.cli._progress import show_progress
from doge_export.core.errors import DogeExportError, ParityError

COMMAND = [sys.executable, "-c", "import sys; from doge_export.cli import main; sys.exit(main())"]


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_every_command(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    for command in app.COMMANDS:
        assert f"\n  {command} " in shown.out


@pytest.mark.parametrize("name", app.COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: doge-export {name} ")


def test_without_a_command_it_shows_help_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "Commands:" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from doge_export import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"doge-export {__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from doge_export.cli import main; main(['--help']); "
        "heavy = ('torch', 'transformers', 'onnx', 'onnxruntime', 'numpy', 'rich', 'huggingface_hub'); "
        "sys.exit(' '.join(name for name in heavy if name in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["exprt"], "No such command 'exprt'. Did you mean export?"),
        (["zzz"], "No such command 'zzz'. There are init, export"),
        (["--sped", "init"], "No such option"),
        (["-v", "-q", "init", "list"], "-v and -q exclude each other"),
        (["init"], "Missing option '-o'"),
        (["init", "-o", "x"], "Give a PRESET or --from-dense MODEL"),
        (["init", "Doge-20M"], "Missing option '-o'"),
        (["init", "Doge-20M", "-o", "x", "--seed", "-1"], "-1 is not in the range"),
        (["init", "Doge-20M", "-o", "x", "--dtype", "int4"], "'int4' is not one of"),
        (["init", "Doge-21M", "-o", "x"], "error: There is no preset 'Doge-21M'. Did you mean"),
        (
            ["init", "Doge-20M", "-o", "x", "--set", "hiden=1"],
            "Doge configuration has no key 'hiden'",
        ),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_2(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert main(arguments) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""
    assert not list(tmp_path.iterdir())


def raises(error: BaseException) -> Callable[[], None]:
    def call() -> None:
        raise error

    return call


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (DogeExportError("It is wrong.", "Do this."), 2, "error: It is wrong. Do this.\n"),
        (ParityError("It misses by 0.5."), 1, "error: It misses by 0.5.\n"),
        (click.exceptions.Exit(1), 1, ""),
        (click.ClickException("No."), 2, "error: No.\n"),
        (click.UsageError("No."), 2, "Error: No.\n"),
        (KeyboardInterrupt(), 130, "interrupted, nothing written\n"),
        (click.Abort(), 130, "interrupted, nothing written\n"),
        (MemoryError(), 2, "error: Out of memory. A smaller model, --max-length or --dtype needs less.\n"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            2,
            "error: Out of memory. A smaller model, --max-length or --dtype needs less.\n",
        ),
        (
            OSError(errno.ENOSPC, "full"),
            2,
            "error: No space is left on the device. Nothing was written.\n",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "error: /x: Permission denied.\n"),
        (
            ZeroDivisionError("division by zero"),
            70,
            "error: internal error, this is a bug: ZeroDivisionError: division by zero "
            "(DOGE_EXPORT_DEBUG=1 shows where it comes from)\n",
        ),
    ],
    ids=repr,
)
def test_the_boundary(
    error: BaseException,
    code: int,
    text: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("DOGE_EXPORT_DEBUG", raising=False)
    assert _shared.guarded(raises(error)) == code
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", text)


@pytest.mark.parametrize("how", ["verbose", "environment"])
def test_a_bug_shows_its_traceback_where_asked(
    how: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "environment":
        monkeypatch.setenv("DOGE_EXPORT_DEBUG", "1")
    assert _shared.guarded(raises(KeyError("k")), verbose=lambda: how == "verbose") == 70
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_bug_in_a_command_passes_through_the_group(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """-v before the command reaches the boundary, which stands outside of the group."""
    monkeypatch.setattr("doge_export.core.presets.names", raises(KeyError("k")))
    assert main(["init", "list"]) == 70
    assert "Traceback" not in capsys.readouterr().err
    assert main(["-v", "init", "list"]) == 70
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_behind(number: signal.Signals, tmp_path: Path) -> None:
    output = tmp_path / "m"
    process = subprocess.Popen(
        [*COMMAND, "init", "Doge-160M", "-o", str(output)], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not any(tmp_path.iterdir()):  # until its temporary folder is there
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    _, shown = process.communicate(timeout=60)
    assert (process.returncode, shown) == (130, "interrupted, nothing written\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_out_as_another_error_is_still_an_interruption(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a library's C++, which catches what Python raises in a callback and keeps its text at most."""

    def call() -> None:
        text = ""
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt as error:
            text = repr(error)
        raise RuntimeError(text)

    before = signal.getsignal(number)
    assert _shared.guarded(call) == 130
    assert capsys.readouterr().err == "interrupted, nothing written\n"
    assert signal.getsignal(number) is before


def test_a_swallowed_signal_ends_the_work_at_its_next_report(capsys: pytest.CaptureFixture[str]) -> None:
    """As in a destructor, or in a library that tries an import and takes any error for its absence."""
    steps = []

    def call() -> None:
        with show_progress("Working") as progress:
            for step in range(9):
                progress()
                steps.append(step)
                if step == 3:
                    with contextlib.suppress(KeyboardInterrupt):
                        signal.raise_signal(signal.SIGINT)

    assert _shared.guarded(call) == 130
    assert steps == [0, 1, 2, 3]
    assert capsys.readouterr().err == "interrupted, nothing written\n"
    assert _shared.guarded(lambda: None) == 0


def test_a_reader_gone_away_is_no_error() -> None:
    process = subprocess.Popen(
        [*COMMAND, "init", "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == ""
    process.stderr.close()


def shown_by_loggers(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command that logs at every level, warns, and lets another library log."""

    def names() -> list[str]:
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            logging.getLogger("doge_export.x").log(level, "ours %s", logging.getLevelName(level))
        logging.getLogger("another.library").warning("theirs")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("from python", UserWarning, stacklevel=1)
        return []

    monkeypatch.setattr("doge_export.core.presets.names", names)
    assert main([*arguments, "init", "list"]) == 0


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (["-q"], ["error: ours ERROR"]),
        ([], ["ours INFO", "warning: ours WARNING", "error: ours ERROR"]),
        (
            ["-v"],
            ["ours DEBUG", "ours INFO", "warning: ours WARNING", "error: ours ERROR", "warning: theirs"],
        ),
    ],
    ids=["quiet", "usual", "verbose"],
)
def test_logging(
    arguments: list[str],
    lines: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown_by_loggers(arguments, monkeypatch)
    shown = capsys.readouterr().err
    assert shown.splitlines()[: len(lines)] == lines
    assert ("from python" in shown) == (arguments == ["-v"])
    handlers = [type(handler) for handler in logging.getLogger().handlers]
    assert logging.StreamHandler not in handlers  # taken away again


def test_json_on_stdout_stands_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["init", "Doge-20M", "-o", str(tmp_path / "m"), "--set", "vocab_size=64", "--json"]
    assert main([*arguments, "-"]) == 0
    assert json.loads(capsys.readouterr().out)["preset"] == "Doge-20M"
    assert main([*arguments, str(tmp_path / "f.json"), "--force"]) == 0
    assert json.loads((tmp_path / "f.json").read_text())["dtype"] == "float32"
    assert "random parameters" in capsys.readouterr().out


def test_a_json_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(DogeExportError, match=r"f\.json cannot be written: No such file or directory"):
        _shared.write_json({}, tmp_path / "nowhere" / "f.json")
    (tmp_path / "f.json").mkdir()
    with pytest.raises(DogeExportError, match="cannot be written"):
        _shared.write_json({}, tmp_path / "f.json")
    assert [path.name for path in tmp_path.iterdir()] == ["f.json"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (float("nan"), "null"),
        (-float("inf"), "null"),
        (np.float32(0.5), "0.5"),
        (np.int64(3), "3"),
        (np.array([[1, 2]]), "[[1,2]]"),
        (Path("a/b"), '"a/b"'),
        ((1, True, None), "[1,true,null]"),
        ({1: "ü"}, '{"1":"ü"}'),
    ],
    ids=repr,
)
def test_what_becomes_json(value: Any, text: str) -> None:
    assert "".join(_shared.to_json(value).split()) == text


def test_what_has_no_json_form() -> None:
    with pytest.raises(TypeError, match="object has no JSON form"):
        _shared.to_json(object())


def test_the_installed_command() -> None:
    command = Path(sys.executable).with_name("doge-export")
    done = subprocess.run([command, "init", "list"], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0
    assert done.stdout.splitlines()[1].split()[:3] == ["Doge-20M", "13.12", "M"]
