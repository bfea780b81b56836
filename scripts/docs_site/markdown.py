"""Texts of the code as Markdown."""

__all__ = ["cell", "fenced", "prose", "table"]

import re
from collections.abc import Iterable, Sequence

_CODE = re.compile(r"(`[^`]*`)")


def prose(text: str) -> str:
    """`text` with what HTML would take for tags escaped, but in code."""
    return _outside_code(text, "<", "&lt;")


def cell(text: str) -> str:
    """`text` in one line, for a table."""
    return _outside_code(prose(" ".join(text.split())), "|", "\\|")


def _outside_code(text: str, old: str, new: str) -> str:
    return "".join(part if part.startswith("`") else part.replace(old, new) for part in _CODE.split(text))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, whose cells are Markdown already; empty where there are no rows."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines]) + "\n" if lines else ""


def fenced(text: str, language: str) -> str:
    """A block of code."""
    return f"```{language}\n{text.strip()}\n```\n"
