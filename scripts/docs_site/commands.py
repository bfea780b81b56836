"""The reference of the command line, from click."""

__all__ = ["GROUPS", "page"]

import inspect
import re

import click

from docs_site.markdown import cell, fenced, prose, table
from doge_export.cli._shared import EXIT_CODES
from doge_export.cli.app import COMMANDS, group

#: Heading -> its commands.
GROUPS = {
    "Make a bundle": ("export", "convert", "init"),
    "Compare and check": ("validate", "verify", "inspect", "doctor"),
    "Run a bundle": ("generate", "chat", "serve"),
    "Make it smaller": ("quantize", "sensitivity", "pareto"),
    "Measure": ("eval", "bench"),
    "Deploy": ("build-engine", "deploy"),
}
_NAME = "doge-export"
_NAMES = re.compile(r"--?[\w-]+")
_OPTION = re.compile(r"(--?[\w-]+(?:(?:, | / )--?[\w-]+)*) ?(.*)")


def page() -> str:
    """Every command with its options, grouped; then the exit codes.

    Raises:
        ValueError: a command is in no group, or a group has one that does not exist.
    """
    if sorted(sum(GROUPS.values(), ())) != sorted(COMMANDS):
        raise ValueError(
            "GROUPS of scripts/docs_site/commands.py are not the commands of doge_export.cli.app"
        )
    parent = click.Context(group, info_name=_NAME)
    parts = ["## Options of every command\n", f"They stand before the command: `{_NAME} -q export ...`.\n"]
    parts.append(_options(group, parent))
    for heading, names in GROUPS.items():
        parts.append(f"## {heading}\n")
        for name in names:
            command = group.get_command(parent, name)
            assert command is not None
            parts.append(_command(command, parent, 3))
    codes = table(("code", "meaning"), ((f"`{code}`", cell(text)) for code, text in EXIT_CODES.items()))
    return "\n".join([*parts, "## Exit codes\n", codes])


def _command(command: click.Command, parent: click.Context, level: int) -> str:
    ctx = click.Context(command, info_name=command.name, parent=parent)
    usage = " ".join([ctx.command_path, *command.collect_usage_pieces(ctx)])
    parts = [f"{'#' * level} {ctx.command_path.removeprefix(_NAME + ' ')}\n", fenced(usage, "text")]
    parts += [_help(command), _options(command, ctx)]
    if isinstance(command, click.Group):
        parts += [_command(each, ctx, level + 1) for each in command.commands.values()]
    return "\n".join(part for part in parts if part)


def _help(command: click.Command) -> str:
    r"""The text of --help. What follows \b keeps its lines: commands to type."""
    paragraphs = []
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        kept = paragraph.startswith("\b\n")
        paragraphs.append(fenced(paragraph[2:], "console") if kept else prose(paragraph) + "\n")
    return "\n".join(paragraphs)


def _options(command: click.Command, ctx: click.Context) -> str:
    records = [
        each.get_help_record(ctx) for each in command.get_params(ctx) if isinstance(each, click.Option)
    ]
    return table(("option", "value", "meaning"), [_row(*record) for record in records if record is not None])


def _row(given: str, meaning: str) -> tuple[str, str, str]:
    """The cells of an option as --help shows it: "-m, --model MODEL"."""
    found = _OPTION.fullmatch(given)
    assert found is not None, given
    names = " ".join(f"`{name}`" for name in _NAMES.findall(found[1]))
    values = [f"`{value}`" for value in found[2].strip("[]").split("|") if value]
    return names, ", ".join(values), cell(meaning)
