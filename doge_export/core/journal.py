"""Results of long work, kept as they come, so that what was interrupted goes on where it stopped."""

import json
import re
from pathlib import Path
from typing import Any

from doge_export.core.errors import DogeExportError
from doge_export.core.json_file import parse_json, read_text

__all__ = ["WORK_NAME", "Journal", "check_work"]

#: Hexadecimal digits in the name of a folder of intermediate results.
WORK_NAME = 12

_LARGEST = 1 << 30  # bytes


class Journal:
    """Key -> value, of JSON, in a file of one line each. What was kept under another `subject`, in which all
    that decides the values must stand, is forgotten; so is a last line that was cut off. There is no file
    before there is a value. A file that is no journal is left alone.

    Raises:
        DogeExportError: the file is no journal of ours, or cannot be read or written.
    """

    def __init__(self, path: Path | None, subject: dict[str, Any]) -> None:
        self._path, self._values = path, dict[str, Any]()
        self._header = header = json.dumps({"subject": subject}, sort_keys=True)
        if path is None:
            return
        try:
            first, *lines = _lines(path)
            whole = [header]
            for line in lines[:-1] if first == header else []:  # what follows the last line end is no line
                kept = parse_json(line)
                if not isinstance(kept, dict):
                    raise ValueError("a line is no object")
                self._values.update(kept)
                whole.append(line)
            path.write_text("\n".join([*whole, ""]), encoding="utf-8")  # or says at once that it cannot be
            if not self._values:
                path.unlink()
        except ValueError:
            raise DogeExportError(f"{path} is no journal of ours.", "Move it away.") from None
        except OSError as error:
            raise DogeExportError(f"{path} cannot be written: {error.strerror}.") from error

    def get(self, key: str) -> Any:
        """Return what is kept under the key; None if nothing is."""
        return self._values.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep the value, in the file too before this returns."""
        self._values[key] = value
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{self._header}\n" if file.tell() == 0 else "")
                file.write(json.dumps({key: value}) + "\n")

    def done(self) -> None:
        """Remove the journal's file."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _lines(path: Path) -> list[str]:
    """The journal's lines, of which the first says whose it is; one empty line where there is no file.

    Raises:
        ValueError: it says nothing of the kind.
    """
    try:
        first, *lines = read_text(path, _LARGEST).split("\n")
    except FileNotFoundError:
        return [""]
    header = parse_json(first) if lines or first else {"subject": None}
    if not isinstance(header, dict) or set(header) != {"subject"}:
        raise ValueError("no header")
    return [first, *lines]


def check_work(folder: Path) -> None:
    """See that `folder`, where it is there, holds intermediate results alone: what is not of the
    present run is removed.

    Raises:
        DogeExportError: it holds something else.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not re.fullmatch(f"[0-9a-f]{{{WORK_NAME}}}", path.name) or path.is_symlink() or not path.is_dir():
            raise DogeExportError(
                f"{path} is no intermediate result, and lies where those are.", "Move it away."
            )
