"""The tests out of a clone of llama.cpp, a git directory, or an archive that has one in it."""

__all__ = ["extract"]

import io
import re
import subprocess
import tarfile
from pathlib import Path, PurePosixPath

_TESTS = PurePosixPath("tools/server/tests")
_WANTED = (_TESTS, PurePosixPath("models/templates"))
#: llama.cpp's fingerprint is the number of its build. It is looked at before anything else of an answer.
_BUILD = re.compile(r"""(system_fingerprint(?:"\])?\.startswith\()"b"\)""")


def extract(source: Path, folder: Path) -> Path:
    """Write the tests, and the chat templates that they read, into `folder`; returns the tests' own. They are
    looked for at any depth, as in the sdist of llama-cpp-python. OpenAI's kind of fingerprint is let pass.

    Raises:
        ValueError: there are none.
    """
    if source.is_dir():
        _from_folder(source, folder)
    else:
        with tarfile.open(source) as archive:
            _unpack(archive, folder)
    if not (tests := folder / _TESTS).is_dir():
        raise ValueError(f"{source} has no {_TESTS}.")
    for file in (tests / "unit").glob("*.py"):
        text = file.read_text(encoding="utf-8")
        file.write_text(_BUILD.sub(r'\1("b", "fp_"))', text), encoding="utf-8")
    return tests


def _from_folder(source: Path, folder: Path) -> None:
    """A tree that lies open is packed first, so that there is one way to unpack."""
    found = next(source.glob(f"**/{_TESTS}/utils.py"), None)
    packed = io.BytesIO()
    if found is None:
        names = [str(each) for each in _WANTED]
        command = ["git", "-C", str(source), "archive", "HEAD", *names]
        packed.write(subprocess.run(command, check=True, capture_output=True).stdout)
    else:
        root = found.parents[len(_TESTS.parts)]
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for each in _WANTED:
                archive.add(root / each, str(each))
    packed.seek(0)
    with tarfile.open(fileobj=packed) as archive:
        _unpack(archive, folder)


def _unpack(archive: tarfile.TarFile, folder: Path) -> None:
    for member in archive:
        path = PurePosixPath(member.name)
        for wanted in _WANTED:
            tails = [path.parts[at:] for at in range(len(path.parts))]
            inside = next((tail for tail in tails if tail[: len(wanted.parts)] == wanted.parts), None)
            if inside is not None and member.isfile():
                member.name = str(PurePosixPath(*inside))
                archive.extract(member, folder, filter="data")
