"""The fenced blocks of the documentation that the tests run, and the marks that say which they do not."""

__all__ = ["ROOT", "Command", "PageError", "Snippet", "commands", "pages", "snippets"]

import re
import shlex
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_PAGES = (
    "README.md",
    "docs/index.md",
    "docs/tutorial.md",
    "docs/guides/*.md",
    "docs/troubleshooting.md",
    "docs/migration.md",
    "docs/faq.md",
)
_FENCE = re.compile(r"\s*(?P<fence>`{3,}|~{3,}) *(?P<language>[\w+-]*)")
_MARK = re.compile(r"\s*<!-- (?P<kind>not run|run by|continues)(?:: (?P<text>.+?))? -->\s*$")
_EXIT = re.compile(r"# exit (\d+)")
_HEREDOC = re.compile(r"<<-?\s*['\"]?(\w+)['\"]?")
#: What changes the machine or only the shell that it is typed in, and what needs a name of its own to be run.
_NOT_HERE = re.compile(
    r"(make|git clone|(\S*/)?pip3? install|\S*python[\d.]* -m (venv|pip)|cd|export|source|\.) ?(?!\S*&&)"
)
_SHELLS = ("bash", "sh", "shell", "zsh")


class PageError(Exception):
    """A block that nobody can tell whether to run, or how."""


@dataclass(frozen=True)
class Snippet:
    """A block. `not_run`: the reason why it is not run. `run_by`: the script that runs it. `continues`: it
    goes on in the Python session of the block above."""

    page: Path
    line: int
    language: str
    text: str
    not_run: str = ""
    run_by: str = ""
    continues: bool = False

    @property
    def place(self) -> str:
        """Page and line, as an editor takes them."""
        page = self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page
        return f"{page}:{self.line}"

    @property
    def is_run(self) -> bool:
        """Whether the tests run it."""
        return not (self.not_run or self.run_by)


@dataclass(frozen=True)
class Command:
    """A command of a console block, and the exit code that the page shows for it."""

    text: str
    exit_code: int = 0

    @property
    def in_background(self) -> bool:
        """Whether it goes on while the page does."""
        return self.text.rstrip().endswith("&") and not self.text.rstrip().endswith("&&")


def pages() -> list[Path]:
    """The pages whose blocks are run; those that do not exist are left out."""
    return [page for pattern in _PAGES for page in sorted(ROOT.glob(pattern))]


def snippets(page: Path) -> list[Snippet]:
    """The console and Python blocks of a page, from top to bottom.

    Raises:
        PageError: a mark is incomplete, stands at no block, or names a script that does not exist.
    """
    lines = page.read_text(encoding="utf-8").splitlines()
    found, marks = list[Snippet](), list[re.Match[str]]()
    place = 0
    while place < len(lines):
        line, fence = lines[place], _FENCE.match(lines[place])
        if mark := _MARK.match(line):
            marks.append(mark)
        elif fence is None and marks and line.strip():
            raise PageError(f"{page}:{place + 1}: the mark above stands at no block.")
        if fence is not None:
            end = next(
                (at for at in range(place + 1, len(lines)) if lines[at].strip() == fence["fence"]), len(lines)
            )
            text = textwrap.dedent("\n".join(lines[place + 1 : end]))
            found += _snippet(page, place + 1, fence["language"], text, marks)
            place, marks = end, []
        place += 1
    return found


def _snippet(
    page: Path, line: int, language: str, text: str, marks: Sequence[re.Match[str]]
) -> Iterator[Snippet]:
    given = {mark["kind"]: mark["text"] or "" for mark in marks}
    if language in _SHELLS:
        raise PageError(f"{page}:{line}: commands stand in a block of `console`, with `$ ` before each.")
    for kind in ("not run", "run by"):
        if kind in given and not given[kind]:
            raise PageError(f"{page}:{line}: `{kind}` says nothing.")
    script = given.get("run by", "")
    if script and not (ROOT / script).is_file():
        raise PageError(f"{page}:{line}: {script} does not exist.")
    if language in ("console", "python"):
        yield Snippet(page, line, language, text, given.get("not run", ""), script, "continues" in given)


def commands(snippet: Snippet) -> list[Command]:
    """The commands of a console block.

    Raises:
        PageError: a line is no command, or a command cannot be run by a test.
    """
    lines = snippet.text.splitlines()
    found: list[Command] = []
    while lines:
        line = lines.pop(0)
        if code := _EXIT.fullmatch(line.strip()):
            if not found:
                raise PageError(f"{snippet.place}: an exit code stands before the first command.")
            found[-1] = Command(found[-1].text, int(code[1]))
        elif line.startswith("$ "):
            found.append(Command(_whole(line[2:], lines)))
        elif line.strip() and not line.startswith("#"):
            raise PageError(
                f"{snippet.place}: {line!r} is no command; what is printed stands in a block of text."
            )
    if not found:
        raise PageError(f"{snippet.place}: no line begins with `$ `, and no mark says why it is not run.")
    for command in found:
        if _NOT_HERE.match(command.text):
            raise PageError(
                f"{snippet.place}: {command.text!r} is not run in a test; mark it, with the reason."
            )
    return found


def _whole(command: str, lines: list[str]) -> str:
    """The command with the lines that belong to it, which are taken from `lines`."""
    while lines and (command.endswith("\\") or _open_quote(command)):
        command += "\n" + lines.pop(0)
    if heredoc := _HEREDOC.search(command):
        while lines:
            command += "\n" + lines[0]
            if lines.pop(0) == heredoc[1]:
                break
    return command


def _open_quote(command: str) -> bool:
    try:
        shlex.split(command, comments=True)
    except ValueError:
        return True
    return False
