"""Which files of a folder are ours: those that a manifest of ours lists, as they were written, and nothing
else."""

__all__ = ["check_apart", "check_ours", "identities", "is_ours", "lists_others", "mark_checkpoint"]

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from doge_export.core.bundle.files import FileEntry, file_entries, hash_files, unchanged
from doge_export.core.bundle.names import CHECKPOINT, DEPLOYMENT, ENGINE_MANIFEST, MANIFEST
from doge_export.core.errors import DogeExportError
from doge_export.core.json_file import read_json

_MANIFESTS = (MANIFEST, ENGINE_MANIFEST, DEPLOYMENT, CHECKPOINT)
_NAMED = 3
_KEEP = "Move them away, or name another folder with -o."


def mark_checkpoint(folder: Path) -> None:
    """Write a list of a checkpoint's files beside them, so that --force knows them again. transformers does
    not read it."""
    from doge_export import __version__

    raw = {"format": 1, "doge_export": __version__, "files": hash_files(folder)}
    text = json.dumps(raw, indent=2, sort_keys=True) + "\n"
    (folder / CHECKPOINT).write_text(text, encoding="utf-8")


def check_ours(folder: Path) -> None:
    """See that there is nothing in `folder` but what we wrote.

    Raises:
        DogeExportError: naming some of what there is else, a file of ours that was changed since included.
    """
    manifest = _manifest(folder)
    listed: dict[str, FileEntry] = {} if manifest is None else manifest[1]
    names = list(islice(_foreign(folder, listed, None if manifest is None else manifest[0]), _NAMED + 1))
    if not names:
        return
    shown = ", ".join(names[:_NAMED]) + (" and more" if len(names) > _NAMED else "")
    if manifest is None:
        raise DogeExportError(
            f"{folder} holds {shown} and none of {', '.join(_MANIFESTS)}, by which doge-export knows what it "
            "wrote, so it is not replaced.",
            "Name another folder with -o, or remove this one yourself.",
        )
    changed = [name for name in names[:_NAMED] if name in listed]
    why = f" ({', '.join(changed)} changed since)" if changed else ""
    raise DogeExportError(
        f"{folder} holds {shown}, which doge-export did not write so{why}, so it is not replaced.", _KEEP
    )


def is_ours(folder: Path) -> bool:
    """Whether there is a manifest of ours, and nothing that it does not list."""
    manifest = _manifest(folder)
    return manifest is not None and next(_foreign(folder, manifest[1], manifest[0]), None) is None


def lists_others(folder: Path, path: Path) -> bool:
    """Whether a manifest of ours in `folder` lists files, and not this one of the folder."""
    manifest = _manifest(folder) if folder.is_dir() else None
    if manifest is None:
        return False
    name = path.resolve().relative_to(folder.resolve()).as_posix()
    return name != manifest[0] and name not in manifest[1]


def _manifest(folder: Path) -> tuple[str, dict[str, FileEntry]] | None:
    """The manifest's name, and what it lists; None where none is ours."""
    for name in _MANIFESTS:
        with contextlib.suppress(OSError, DogeExportError, ValueError, KeyError):
            return name, file_entries(read_json(folder / name, unique=True))
    return None


def _foreign(folder: Path, listed: dict[str, FileEntry], manifest: str | None) -> Iterator[str]:
    """Yield the names of files that are not as `listed`, in the order in which they are met; empty folders
    count for nothing."""
    for directory, folders, files in os.walk(folder, onerror=_raise):
        links = [name for name in folders if (Path(directory) / name).is_symlink()]
        folders[:] = sorted(name for name in folders if name not in links and name != "__pycache__")
        for name in sorted([*files, *links]):
            path = Path(directory) / name
            known = path.relative_to(folder).as_posix()
            entry = listed.get(known)
            if known != manifest and (entry is None or not unchanged(path, entry)):
                yield known


def _raise(error: OSError) -> None:
    raise DogeExportError(f"{error.filename} cannot be read: {error.strerror}.", _KEEP) from error


def check_apart(output: Path, inputs: Iterable[Path | None]) -> None:
    """See that writing the folder `output` takes none of the `inputs` away, and adds nothing to one: what is
    read next time would have it within.

    Raises:
        DogeExportError: it is one of them, holds one, or lies inside one, by whatever name or link; or it
            would, where it is not there yet.
    """
    there, above = output.exists(), identities(output)
    for source in inputs:
        if source is None or not source.exists():
            continue
        what = None
        if there and above[0] in identities(source):
            what = "is" if above[0] == identities(source)[0] else "holds"
        elif identities(source)[0] in above:
            what = "lies inside"
        elif there and any(above[0] in identities(link) for link in _links(source)):
            what = "holds files of"
        if what is not None:
            why = "so it is not replaced" if there else "so nothing is written there"
            raise DogeExportError(
                f"{output} {what} {source}, which is read here, {why}.",
                "Name another folder with -o.",
            )


def identities(path: Path) -> list[tuple[int, int]]:
    """Return the device and inode of what the path leads to, and of every folder above it that exists."""
    whole = path.resolve()
    status = [ancestor.stat() for ancestor in (whole, *whole.parents) if ancestor.exists()]
    return [(each.st_dev, each.st_ino) for each in status]


def _links(folder: Path) -> list[Path]:
    """The links in an input's folder that lead somewhere."""
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if path.is_symlink() and path.exists()]
