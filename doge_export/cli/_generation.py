"""The options of generation that several commands have, and reading text from stdin."""

__all__ = ["generation_options", "read_line", "read_stdin", "rule_options", "rules_of", "template_option"]

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from doge_export.runtime import Rules

_MAX_STDIN = 16 << 20  # bytes, or characters, of stdin: no model reads as many
_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--max-new-tokens", type=click.IntRange(min=1), metavar="N", help="Default: 100."),
    click.option("--temperature", type=click.FloatRange(min=0), metavar="T", help="0 is greedy."),
    click.option("--top-k", type=click.IntRange(min=0), metavar="K", help="0 is off."),
    click.option("--top-p", type=click.FloatRange(min=0, max=1), metavar="P", help="1 is off."),
    click.option(
        "--min-p",
        type=click.FloatRange(min=0, max=1),
        metavar="P",
        help="Draw no token with less than this share of the best one's probability; 0 is off.",
    ),
    click.option(
        "--repetition-penalty", type=click.FloatRange(min=0, min_open=True), metavar="R", help="1 is off."
    ),
    click.option("--stop", multiple=True, metavar="TEXT", help="End before this text. Repeatable."),
    click.option("--seed", type=click.IntRange(min=0), metavar="N", help="Draw the same tokens every time."),
    click.option(
        "--threads", type=click.IntRange(min=1), metavar="N", help="Default: as onnxruntime chooses."
    ),
)


_RULES = (
    click.option(
        "--json-schema",
        metavar="FILE|TEXT",
        help="Write JSON of this schema; a text begins with {.",
    ),
    click.option("--regex", metavar="TEXT", help="Write what this regular expression matches."),
    click.option("--choice", multiple=True, metavar="TEXT", help="Write one of these. Repeatable."),
    click.option(
        "--grammar", type=click.Path(path_type=Path), metavar="FILE", help="Write by this Lark grammar."
    ),
)


def rule_options(command: _Command) -> _Command:
    """What the text has to be: one of these at most, by `rules_of`. Needs the extra `serve`."""
    for option in reversed(_RULES):
        command = option(command)
    return command


def rules_of(
    json_schema: str | None, regex: str | None, choice: tuple[str, ...], grammar: Path | None
) -> "Rules | None":
    """The rules that the options say; None where there are none."""
    from doge_export.core.json_file import read_text
    from doge_export.runtime import Rules

    given: Mapping[str, Any] = {
        "--json-schema": json_schema,
        "--regex": regex,
        "--choice": choice or None,
        "--grammar": grammar,
    }
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise click.UsageError(
            f"{names[0]} and {names[1]} both say what the text has to be. Give one of them."
        )
    if json_schema is not None:
        return Rules.json_schema(_schema(json_schema), "--json-schema")
    if regex is not None:
        return Rules.regex(regex, "--regex")
    if choice:
        return Rules.choice(choice, "--choice")
    if grammar is not None:
        try:
            return Rules.grammar(read_text(grammar), "--grammar")
        except FileNotFoundError:
            raise click.UsageError(f"--grammar: there is no file {grammar}.") from None
    return None


def _schema(text: str) -> dict[str, Any]:
    from doge_export.core.json_file import parse_json, read_json

    try:
        schema = parse_json(text) if text.lstrip().startswith("{") else read_json(Path(text))
    except FileNotFoundError:
        raise click.UsageError(f"--json-schema: there is no file {text}.") from None
    except ValueError as error:
        raise click.UsageError(f"--json-schema is no JSON: {error}.") from None
    if not isinstance(schema, dict):
        raise click.UsageError("--json-schema is no object, as a JSON schema is.")
    return schema


def generation_options(command: _Command) -> _Command:
    """How to choose the next tokens, when to stop, and with how many threads; as `GenerationOptions` has
    them."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


template_option = click.option(
    "--chat-template", metavar="NAME", help="Of several chat templates, this one. Default: default."
)


def read_line() -> str:
    """A line of stdin with its end; empty at the end of all."""
    return _bounded(sys.stdin.readline(_MAX_STDIN + 1))


def read_stdin() -> str:
    """All of stdin; one line end at its end is the shell's, not the text's."""
    content = _bounded(sys.stdin.buffer.read(_MAX_STDIN + 1))
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise click.UsageError(f"stdin is not UTF-8 at byte {error.start + 1}.") from None
    return text.removesuffix("\n").removesuffix("\r")


_Text = TypeVar("_Text", str, bytes)


def _bounded(text: _Text) -> _Text:
    if len(text) > _MAX_STDIN:
        raise click.UsageError(f"stdin is longer than {_MAX_STDIN >> 20} MiB. Give a shorter text.")
    return text
