"""`optimum-cli export doge`: `doge-export export` in optimum's frame, with the same options and the same
work."""

__all__ = ["DogeExportCommand", "add_options", "to_arguments"]

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import Any

import click
from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from doge_export.cli import main
from doge_export.cli.app import group
from doge_export.cli.export import command


def add_options(parser: ArgumentParser, parameters: Sequence[click.Parameter]) -> None:
    """Give `parser` the options of a click command. Values stay text: click reads them."""
    for option in _options(parameters):
        # argparse formats a help text with %
        named: dict[str, Any] = {"dest": option.name, "help": (option.help or "").replace("%", "%%")}
        if option.is_flag:
            named["action"] = "store_true"
        else:
            named |= {"metavar": option.metavar or option.type.name.upper(), "required": option.required}
            if option.multiple:
                named["action"] = "append"
        parser.add_argument(*option.opts, **named)


def to_arguments(arguments: Namespace, parameters: Sequence[click.Parameter]) -> list[str]:
    """What argparse has read, as it is written on click's command line."""
    written: list[str] = []
    for option in _options(parameters):
        value, name = getattr(arguments, option.name or ""), option.opts[-1]
        if option.is_flag:
            written += [name] if value else []
        elif value is not None:
            written += [f"{name}={each}" for each in (value if option.multiple else [value])]
    return written


def _options(parameters: Sequence[click.Parameter]) -> list[click.Option]:
    return [each for each in parameters if isinstance(each, click.Option) and each.expose_value]


class DogeExportCommand(BaseOptimumCLICommand):  # type: ignore[misc]
    """Turns a checkpoint into a bundle; exits as `doge-export` does."""

    COMMAND = CommandInfo(name="doge", help="Export a Doge model to ONNX, exact against the reference.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        add_options(parser, [*group.params, *command.params])

    def run(self) -> None:
        before, after = to_arguments(self.args, group.params), to_arguments(self.args, command.params)
        sys.exit(main([*before, "export", *after]))
