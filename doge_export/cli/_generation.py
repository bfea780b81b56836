"""The options of generation that several commands have, and reading text from stdin."""

__all__ = ["generation_options", "read_line", "read_stdin", "template_option"]

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

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
