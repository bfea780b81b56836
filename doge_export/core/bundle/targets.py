"""Single files that a command writes, such as a report: never over what it reads."""

__all__ = ["check_target"]

from collections.abc import Iterable
from pathlib import Path

from doge_export.core.bundle.coverage import RUNS
from doge_export.core.bundle.ownership import identities, lists_others
from doge_export.core.errors import DogeExportError

_ELSEWHERE = "Name another file."


def check_target(target: Path, inputs: Iterable[Path | None], output: Path | None = None) -> None:
    """See that writing the file `target` overwrites none of the `inputs`, and no file of a folder among them
    but one that a manifest of ours there does not list; nor what runs in the folder `output`, which is
    written before.

    Raises:
        DogeExportError: it would, or it is a folder.
    """
    try:
        runs = target.name in RUNS or target.suffix in (".onnx", ".data", ".safetensors", ".engine")
        if runs and output is not None and target.resolve().parent == output.resolve():
            raise DogeExportError(f"{target} would overwrite what is written to {output}.", _ELSEWHERE)
        if target.is_dir():
            raise DogeExportError(f"{target} is a folder.", _ELSEWHERE)
        if not target.is_file():
            return
        above = identities(target)
        for source in inputs:
            if source is None or not source.exists():
                continue
            itself = identities(source)[0]
            within = itself in above[1:] and not lists_others(source, target)
            if itself == above[0] or within or above[0] in _held(source):
                raise DogeExportError(f"{target} is read here, and would be overwritten.", _ELSEWHERE)
    except OSError as error:
        raise DogeExportError(f"{target} cannot be written: {error.strerror}.", _ELSEWHERE) from error
    except (ValueError, RuntimeError) as error:  # a NUL in the name; links in a circle
        raise DogeExportError(f"{str(target)!r} is no name of a file: {error}.", _ELSEWHERE) from error


def _held(folder: Path) -> set[tuple[int, int]]:
    """Return device and inode of what the links in an input's folder lead to."""
    links = [path for path in folder.iterdir() if path.is_symlink()] if folder.is_dir() else []
    return {identities(link)[0] for link in links if link.exists()}
