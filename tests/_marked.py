"""Tables of the docs that a command writes, between marks."""

from collections.abc import Sequence
from pathlib import Path


def put_between(marks: tuple[str, str], lines: Sequence[str], path: Path) -> None:
    """Put `lines` in the place of what stands between the two marks of a file."""
    before, rest = path.read_text().split(marks[0])
    table = "\n".join(["", *lines, ""])
    path.write_text(f"{before}{marks[0]}{table}{marks[1]}{rest.split(marks[1])[1]}")
