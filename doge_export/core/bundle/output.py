"""Folders that are written beside their place and renamed, whole or not at all."""

__all__ = ["check_output", "new_folder"]

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Generator, Iterable
from pathlib import Path

from doge_export.core.bundle.leftovers import aside, put_back, remove_stale
from doge_export.core.bundle.ownership import check_apart, check_ours
from doge_export.core.errors import DogeExportError
from doge_export.core.temporary import locked_folder

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def new_folder(output: Path, force: bool = False, inputs: Iterable[Path | None] = ()) -> Generator[Path]:
    """A temporary folder that becomes `output` when the block ends well, and vanishes when it does not.

    With `force` an older `output` is moved away only once the new folder is whole, so that there is no
    moment without a good one. `inputs` are what the block reads.

    Raises:
        DogeExportError: `output` exists already (without `force`), holds what this tool did not write, is or
            holds one of the `inputs` or lies in one, or cannot be written: no permission, no room, a file
            where a folder should be.
    """
    unresolved = output
    check_output(output, force, inputs)
    output = output.resolve()
    try:
        _make_parents(output)
        remove_stale(output)
        with locked_folder(output.parent, f".{output.name}.{{}}.partial") as partial:
            yield partial
            _swap(partial, output, force)
    except OSError as error:
        raise _sentence(unresolved, error) from error
    except Exception as error:
        # safetensors and torch write with their own code and raise their own exceptions for it.
        if os.strerror(errno.ENOSPC) in str(error) and not isinstance(error, DogeExportError):
            raise _sentence(unresolved, OSError(errno.ENOSPC, "")) from error
        raise


def _make_parents(output: Path) -> None:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        file = error.filename or output.parent
        raise DogeExportError(
            f"{output} cannot be written: {file} is a file.", "Name a folder with -o."
        ) from error


def check_output(output: Path, force: bool = False, inputs: Iterable[Path | None] = ()) -> None:
    """Raise DogeExportError where `new_folder` would refuse `output` at once. What a killed process moved
    aside is put back first."""
    try:
        whole = output.resolve()
        put_back(whole)
        if not whole.exists():
            check_apart(output, inputs)
            _check_place(output, whole)
            return
        if not whole.is_dir():
            raise DogeExportError(f"{output} is a file.", "Name a folder with -o.")
        if not force:
            raise DogeExportError(f"{output} exists already.", "Pass --force to replace it.")
        check_apart(output, inputs)
        check_ours(output)
    except OSError as error:
        raise _sentence(output, error) from error
    except (ValueError, RuntimeError) as error:  # a NUL in the name; links in a circle
        raise DogeExportError(f"{str(output)!r} is no name of a folder: {error}.") from error


def _check_place(output: Path, whole: Path) -> None:
    """See that a folder can be made where none is."""
    parent, names = whole.parent, [f".{whole.name}.{'0' * 8}.partial"]
    while not parent.exists():
        names.append(parent.name)
        parent = parent.parent
    if not parent.is_dir():
        raise DogeExportError(
            f"{output} cannot be written: {parent} is a file.", "Name another folder with -o."
        )
    wrong = 0
    if any(len(os.fsencode(name)) > os.pathconf(parent, "PC_NAME_MAX") for name in names):
        wrong = errno.ENAMETOOLONG
    elif not os.access(parent, os.W_OK | os.X_OK):
        wrong = errno.EROFS if os.statvfs(parent).f_flag & os.ST_RDONLY else errno.EACCES
    if wrong:
        raise OSError(wrong, os.strerror(wrong), str(parent))


def _swap(partial: Path, output: Path, force: bool) -> None:
    if not (force and output.exists()):
        partial.rename(output)
        return
    check_ours(output)  # once more: what came while we worked is not ours
    old = aside(partial)
    output.rename(old)
    try:
        partial.rename(output)
    except BaseException:
        old.rename(output)
        raise
    try:
        shutil.rmtree(old)
    except OSError as error:
        _log.warning("%s is replaced, but the old one stays in %s: %s.", output, old, error.strerror)


def _sentence(output: Path, error: OSError) -> DogeExportError:
    if error.errno == errno.ENOSPC:
        return DogeExportError(
            f"{output} cannot be written: no space is left on the device.",
            "Free some space, or name a folder on another disk with -o.",
        )
    if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
        return DogeExportError(
            f"{output} was created by somebody else meanwhile.", "Name another one with -o."
        )
    where = f" ({error.filename})" if error.filename and str(output) not in str(error.filename) else ""
    return DogeExportError(f"{output} cannot be written: {error.strerror or error}{where}.")
