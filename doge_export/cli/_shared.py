"""What every command shares: the error boundary, logging on stderr, JSON for machines."""

__all__ = [
    "EXIT_CODES",
    "guarded",
    "logging_on_stderr",
    "pairs",
    "to_json",
    "write_json",
    "write_text",
]

import contextlib
import errno
import json
import logging
import math
import os
import sys
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from doge_export.cli._signals import interrupted, unwound_by_signals
from doge_export.core.errors import DogeExportError

_INTERRUPTED = 130
_BROKEN_PIPE = 141  # what a shell shows for a process that SIGPIPE ended
_BUG = 70  # EX_SOFTWARE
#: Exit code -> what it says. All that a command can end with.
EXIT_CODES: Mapping[int, str] = {
    0: "Clean.",
    1: "A finding: parity or quality missed, or a file that is not what it was.",
    2: "Wrong input, or a machine that lacks something: one sentence on stderr, and nothing written.",
    _BUG: "A bug of doge-export. DOGE_EXPORT_DEBUG=1 shows where it comes from.",
    _INTERRUPTED: "Interrupted by Ctrl-C or SIGTERM; nothing written.",
    _BROKEN_PIPE: "Who read stdout went away.",
}
_OUT_OF_MEMORY = "Out of memory. A smaller model, --max-length or --dtype needs less."


def guarded(call: Callable[[], None], *, verbose: Callable[[], bool] = lambda: False) -> int:
    """Run `call` and turn whatever it raises into one sentence on stderr and an exit code.

    A user's mistake never shows a traceback; a bug of ours does where DOGE_EXPORT_DEBUG=1 or `verbose`, asked
    when it happens, says so.
    """
    _let_any_name_be_shown()
    with unwound_by_signals():
        try:
            call()
            sys.stdout.flush()  # so that a reader gone away is noticed here, not at the interpreter's exit
        except (KeyboardInterrupt, click.Abort):
            return _interrupted()
        except click.exceptions.Exit as error:
            return error.exit_code
        except Exception as error:  # the boundary: nothing may pass it as a bare traceback
            # What a signal raises inside a library's C++ comes out of it as another error, or as its text.
            return _interrupted() if interrupted() else _explained(error, verbose)
    return 0


def _interrupted() -> int:
    click.echo("interrupted, nothing written", err=True)
    return _INTERRUPTED


def _explained(error: Exception, verbose: Callable[[], bool]) -> int:
    """Say in one sentence what went wrong, and return the exit code."""
    if isinstance(error, DogeExportError):
        return _fail(str(error), error.exit_code)
    if isinstance(error, click.UsageError):
        error.show(sys.stderr)
        return 2
    if isinstance(error, click.ClickException):
        return _fail(error.format_message(), 2)
    if isinstance(error, BrokenPipeError):
        # The flush at exit would fail once more; let it go nowhere.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    # torch raises RuntimeError where memory ends
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return _fail(_OUT_OF_MEMORY, 2)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return _fail("No space is left on the device. Nothing was written.", 2)
    if isinstance(error, OSError) and error.filename is not None:  # in nearly every case the user named it
        _trace(error, verbose())
        return _fail(f"{error.filename}: {error.strerror}.", 2)
    return _bug(error, verbose())


def _let_any_name_be_shown() -> None:
    """Let stdout show a path whose bytes are no UTF-8, which a strict one refuses."""
    if getattr(sys.stdout, "errors", None) == "strict" and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def _fail(sentence: str, code: int) -> int:
    click.echo(f"error: {sentence}", err=True)
    return code


def _bug(error: Exception, verbose: bool) -> int:
    _trace(error, verbose)
    summary = traceback.format_exception_only(error)[-1].strip().splitlines()[0]
    return _fail(
        f"internal error, this is a bug: {summary} (DOGE_EXPORT_DEBUG=1 shows where it comes from)", _BUG
    )


def _trace(error: Exception, verbose: bool) -> None:
    if verbose or os.environ.get("DOGE_EXPORT_DEBUG") == "1":
        traceback.print_exception(error, file=sys.stderr)


class _OursOrGrave(logging.Filter):
    """Pass our own records; of other libraries only what is at least `level`."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self.level = level

    def filter(self, record: logging.LogRecord) -> bool:
        return record.name.partition(".")[0] == "doge_export" or record.levelno >= self.level


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"


@contextlib.contextmanager
def logging_on_stderr(*, verbose: bool = False, quiet: bool = False) -> Generator[None]:
    """Show log records on stderr while a command runs.

    Python warnings become records of the logger `py.warnings`, which only -v shows: what torch and
    onnxscript warn about during an export is not for the user.
    """
    root, ours = logging.getLogger(), logging.getLogger("doge_export")
    level = logging.DEBUG if verbose else logging.ERROR if quiet else logging.INFO
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Plain())
    handler.addFilter(_OursOrGrave(logging.WARNING if verbose else logging.ERROR))
    before = ours.level
    root.addHandler(handler)
    ours.setLevel(level)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        ours.setLevel(before)
        root.removeHandler(handler)


def pairs(arguments: Sequence[str], option: str) -> dict[str, str]:
    """The values of an option that is given as key=value, several times.

    Raises:
        DogeExportError: one has no key or no value, or a key comes twice.
    """
    parsed: dict[str, str] = {}
    for each in arguments:
        key, equals, value = each.partition("=")
        if not (key and equals and value):
            raise DogeExportError(f"{option} {each!r} is not key=value.")
        if key in parsed:
            raise DogeExportError(f"{option} gives {key} twice.")
        parsed[key] = value
    return parsed


def to_json(data: Any) -> str:
    """`data` as JSON that every parser accepts: numbers that JSON lacks become null."""
    text = json.dumps(_plain(data), indent=2, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")  # \udc80 is JSON's own way to say it


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, str | bool | int | None):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Sequence | set | frozenset):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy's scalars and arrays, without importing numpy
        return _plain(value.tolist())
    raise TypeError(f"{type(value).__name__} has no JSON form")


def write_json(data: Any, target: str | Path) -> None:
    """Write `data` to stdout where `target` is "-", else to that file, whole or not at all.

    Raises:
        DogeExportError: the file cannot be written.
    """
    text = to_json(data) + "\n"
    if str(target) == "-":
        click.echo(text, nl=False)
    else:
        write_text(text, Path(target))


def write_text(text: str, path: Path) -> None:
    """Write the file, whole or not at all.

    Raises:
        DogeExportError: it cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")
        part.replace(path)
    except OSError as error:
        raise DogeExportError(f"{path} cannot be written: {error.strerror}.") from error
    finally:
        part.unlink(missing_ok=True)
