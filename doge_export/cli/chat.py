"""`doge-export chat`: a conversation in the terminal."""

__all__ = ["command"]

import contextlib
import logging
import sys
from pathlib import Path
from typing import Any

import click

from doge_export.cli._generation import generation_options, read_line, template_option

_log = logging.getLogger(__name__)
_KEPT = 128 << 20  # bytes for what was read of the conversation, which a turn then need not read again
_HELP = "An empty line or Ctrl-D ends, /reset begins again."


@click.command("chat")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--system", metavar="TEXT", help="What the conversation starts with, as the system's message.")
@template_option
@generation_options
def command(
    bundle: Path,
    system: str | None,
    chat_template: str | None,
    threads: int | None,
    stop: tuple[str, ...],
    **changes: Any,
) -> None:
    """Talk with the model in BUNDLE, whose tokenizer has a chat template.

    One line of stdin is one message; the answers go to stdout as they come.
    """
    from doge_export.core.tokenizer import Tokenizer
    from doge_export.runtime import GenerationDefaults, Session, generate, open_folder
    from doge_export.runtime.scheduling import PrefixStore

    opened = open_folder(bundle)
    tokenizer = Tokenizer.load(opened.path, chat_template)
    options = GenerationDefaults.of(opened).changed(stop=stop, **changes)
    beginning = [{"role": "system", "content": system}] if system else []
    # A missing or damaged template is said now, not after the first message.
    tokenizer.apply_chat_template([*beginning, {"role": "user", "content": ""}])
    session = Session.open(opened, threads)

    def show(row: int, piece: str) -> None:
        click.echo(piece, nl=False)
        sys.stdout.flush()

    asked = sys.stdin.isatty()
    if asked:
        with contextlib.suppress(ImportError):  # line editing and history, where Python has it
            import readline  # noqa: F401
        _log.info(_HELP)
    messages, read = list(beginning), PrefixStore(_KEPT)
    while line := _line("> " if asked else ""):
        if line == "/reset":
            messages = list(beginning)
            continue
        messages.append({"role": "user", "content": line})
        ids = tokenizer.encode(tokenizer.apply_chat_template(messages), add_special_tokens=False)
        (completion,) = generate(session, [ids], options, tokenizer, show, prefixes=read).completions
        click.echo()
        messages.append({"role": "assistant", "content": completion.text})


def _line(prompt: str) -> str:
    """The next message; empty at the end."""
    try:
        return (input(prompt) if prompt else read_line()).strip()
    except EOFError:
        return ""
    except UnicodeDecodeError as error:
        raise click.UsageError(f"stdin is not UTF-8 at byte {error.start + 1}.") from None
