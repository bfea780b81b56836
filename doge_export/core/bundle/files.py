"""Files by their hashes: those of a folder, and whether they are still what they were."""

__all__ = ["FileEntry", "file_entries", "hash_files", "plain_name", "unchanged", "verify_files"]

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from doge_export.core.errors import DogeExportError
from doge_export.core.json_file import member

_LONGEST_NAME = 255


@dataclass(frozen=True)
class FileEntry:
    """Hash and size of a file when the bundle was written."""

    sha256: str
    bytes: int


def file_entries(raw: Any) -> dict[str, FileEntry]:
    """The `files` of a manifest.

    Raises:
        KeyError: it has none.
        ValueError: one is not described, or is outside the folder.
    """
    files = member(raw, "files", dict)
    return {
        plain_name(name): FileEntry(member(entry, "sha256", str), member(entry, "bytes", int, 0))
        for name, entry in files.items()
    }


def plain_name(name: str) -> str:
    """The name, if it is of a file inside the folder: a manifest may come from anywhere, and must not make us
    read others.

    Raises:
        ValueError: it is not.
    """
    path = PurePosixPath(name)
    fits = name.isprintable() and all(len(os.fsencode(part)) <= _LONGEST_NAME for part in path.parts)
    if not fits or not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name:
        raise ValueError(f"{name!r} is not a file of the bundle")
    return name


def verify_files(folder: Path, files: Mapping[str, FileEntry], remedy: str) -> None:
    """Compare the files of `folder` with what they were.

    Raises:
        DogeExportError: naming the first file that is missing, truncated or changed.
    """
    for name, entry in files.items():
        path = folder / name
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):  # a pipe would have us wait
                raise DogeExportError(f"{path} was changed: it is no file any more.", remedy)
            size = status.st_size
            digest = _sha256(path) if size == entry.bytes else ""
        except FileNotFoundError:
            raise DogeExportError(f"{path} is missing.", remedy) from None
        except OSError as error:
            raise DogeExportError(f"{path} cannot be read: {error.strerror}.") from error
        if size < entry.bytes:
            raise DogeExportError(
                f"{path} is truncated: it has {size} of {entry.bytes} bytes.", f"Copy it again. {remedy}"
            )
        if digest != entry.sha256:
            raise DogeExportError(f"{path} was changed: its sha256 is not the manifest's.", remedy)


def hash_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Name -> sha256 and bytes of every file of `folder`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"sha256": _sha256(path), "bytes": path.stat().st_size}
        for path in paths
    }


def unchanged(path: Path, entry: FileEntry) -> bool:
    """Whether the file, or what a link leads to, has the bytes it had."""
    try:
        status = path.stat()
        return (
            stat.S_ISREG(status.st_mode) and status.st_size == entry.bytes and _sha256(path) == entry.sha256
        )
    except OSError:
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
